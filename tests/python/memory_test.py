"""The process's memory, as the system counts it, beside the ledger."""

import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import numpy as np

import nibblenet
from support import prepared, state_dict

# Prints by how many bytes a model makes the process grow: loaded, and once it has computed. Then it
# saves it.
CODE = """
import ctypes, sys
import nibblenet
from support import prepared, state_dict

def own():  # bytes that only this process has, and has written
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/smaps_rollup") as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith("Private_Dirty:"))

images = prepared(1)
nibblenet.pack(state_dict())(images)  # what the first model of a process brings with it
before = own()
model = nibblenet.load(sys.argv[1])
grown = [own() - before]
model(images)
grown.append(own() - before)
model.save(sys.argv[2])
print(model.size.resident, *grown)
"""


def wide():
    """A model of 7.6 million weights, all but 50,000 of them in two layers."""
    parameters = state_dict()
    random = np.random.default_rng(4)
    parameters["classifier.1.weight"] = random.standard_normal((16384, 432), np.float32)
    parameters["classifier.1.bias"] = np.zeros(16384, np.float32)
    parameters["classifier.4.weight"] = random.standard_normal((32, 16384), np.float32)
    return parameters


class Memory(unittest.TestCase):
    @unittest.skipIf("NIBBLENET_SANITIZED" in os.environ, "a sanitizer's memory is not ours")
    def test_a_packed_model_takes_what_the_ledger_says(self):
        with tempfile.TemporaryDirectory() as folder:
            path, again = Path(folder) / "packed.safetensors", Path(folder) / "again.safetensors"
            packed = nibblenet.pack(wide(), bits=8, method="linear")
            logits = packed(prepared(1))
            packed.save(path)
            self.assertTrue(np.array_equal(packed(prepared(1)), logits))
            done = subprocess.run([sys.executable, "-c", CODE, path, again], cwd=Path(__file__).parent, capture_output=True,
                                  text=True, timeout=120)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertEqual(again.read_bytes(), path.read_bytes())
            ledger, *grown = map(int, done.stdout.split())
            for bytes_ in grown:
                self.assertGreater(bytes_, 0.9 * ledger, done.stdout)
                self.assertLess(bytes_, 1.25 * ledger + 1e6, done.stdout)  # and activations, which batch 1 has few of

    def test_what_the_network_holds_is_read_back(self):
        for scheme in ("linear:4:channel", "linear:3:row:zero-point", "kmeans:3", "nf4:4:block:64:f16", "fp8-e4m3",
                       "stable-embedding:8:sorted", "trellis:1.5:channel", "trellis:2:channel:f16:rotated"):
            packed = nibblenet.pack(state_dict(), layers={"*": scheme, "classifier.6": "linear:8:channel"})
            before = packed.dequantize()
            logits = packed(prepared(2))  # makes the network
            for name, values in packed.dequantize().items():
                self.assertTrue(np.array_equal(values, before[name]), f"{scheme} {name}")
            floats = packed.floats()
            np.testing.assert_allclose(floats(prepared(2)), logits, rtol=1e-4, atol=1e-4, err_msg=scheme)
            with tempfile.TemporaryDirectory() as folder:
                first, second = Path(folder) / "1.safetensors", Path(folder) / "2.safetensors"
                packed.save(first)
                nibblenet.pack(state_dict(), layers={"*": scheme, "classifier.6": "linear:8:channel"}).save(second)
                self.assertEqual(first.read_bytes(), second.read_bytes(), scheme)
            self.assertTrue(np.array_equal(packed(prepared(2)), logits), scheme)


if __name__ == "__main__":
    unittest.main()
