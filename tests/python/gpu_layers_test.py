"""Packed layers on a GPU. Most tests run kernels on the CPU; those of real streams and memory need a GPU."""

import copy
import io
import pickle
import unittest
import unittest.mock
import warnings

import numpy as np

import nibblenet
from gpu_arrays import OnHost, Stream, WithDoubles, capsule, double, filled, plain, torch
from nibblenet import _core
from packed_layer_test import FILTERS, MATRICES, SCHEMES, packed, weights, window
from support import prepared, state_dict

if torch is not None:
    import nibblenet.torch as packed_torch
    from torch import nn
    from torch_test import alexnet

ROTATED = [((70, 24), "linear:4:channel:rotated"), ((5, 72), "kmeans:3:channel:f16:rotated:9"),
           ((300, 72), "trellis:1.5:channel:rotated:9"), ((5, 16, 3, 3), "linear:5:block:7:rotated")]


def on_gpu(form, parts):
    """The layer on a GPU, and its parts there."""
    layer, codes, block_ids = form.for_gpu(parts, "layer")
    there = [codes, *parts[1:3], block_ids, *parts[4:]]
    return layer, [None if part is None else np.array(part) for part in there]


def capsules(parts, number=0):
    return [None if part is None else capsule(part, number) for part in parts]


class Computing(OnHost):
    def compare(self, y, expected, title):
        """In float16: inputs, weights and outputs are rounded, and errors of many terms add up."""
        np.testing.assert_allclose(y, expected, rtol=4e-3, atol=4e-3 * max(1.0, np.abs(expected).max()), err_msg=title)

    def test_matrices(self):
        for scheme in SCHEMES:
            for shape in MATRICES:
                for batch in (1, 9, 130 if shape[1] < 100 else 2):
                    for dtype in (np.float16, np.float32):
                        form, parts = packed(shape, scheme, bias=batch != 9)
                        layer, there = on_gpu(form, parts)
                        x, y = weights((batch, shape[1]), seed=2).astype(np.float16), filled((batch, shape[0]), dtype)
                        layer.linear(capsule(y), capsule(x), capsules(there), 0)
                        expected = x.astype(np.float64) @ form.dequantized(parts).T
                        if batch != 9:
                            expected += weights(shape[:1], seed=1)
                        self.compare(y, expected, f"{scheme} {shape} {batch}")

    def test_convolutions(self):
        for scheme in SCHEMES:
            for shape in [*FILTERS, (70, 64, 3, 3)]:
                for stride, padding in ((1, 0), (2, 1)):
                    form, parts = packed(shape, scheme)
                    layer, there = on_gpu(form, parts)
                    x = weights((2, 7, 6, shape[1]), seed=2).astype(np.float16)
                    windows = window(x, shape[2], stride, padding)
                    y = filled((*windows.shape[:3], shape[0]), np.float16 if stride == 1 else np.float32)
                    layer.conv2d(capsule(y), capsule(x), stride, padding, capsules(there), 0)
                    expected = np.einsum("npqrsc,kcrs->npqk", windows, form.dequantized(parts), dtype=np.float64)
                    self.compare(y, expected + weights(shape[:1], seed=1), f"{scheme} {shape}")

    def test_rotated_weights_read_rotated_inputs(self):
        for shape, scheme in ROTATED:
            form, parts = packed(shape, scheme)
            self.assertTrue(form.rotated)
            layer, there = on_gpu(form, parts)
            if len(shape) == 2:
                x = weights((3, shape[1]), seed=2).astype(np.float16)
                expected, y = x.astype(np.float64) @ form.dequantized(parts).T, filled((3, shape[0]))
                layer.linear(capsule(y), capsule(x), capsules(there), 0)
            else:
                x = weights((2, 9, 7, shape[1]), seed=2).astype(np.float16)
                windows = window(x.copy(), 3, 1, 0)
                expected = np.einsum("npqrsc,kcrs->npqk", windows, form.dequantized(parts), dtype=np.float64)
                y = filled((2, 7, 5, shape[0]))
                layer.conv2d(capsule(y), capsule(x), 1, 0, capsules(there), 0)
            self.compare(y, expected + weights(shape[:1], seed=1), scheme)

    def test_no_rows_and_no_images(self):
        for scheme in ("linear:4:channel", "linear:4:channel:rotated", "trellis:2:channel"):
            form, parts = packed((5, 16), scheme, bias=False)
            layer, there = on_gpu(form, parts)
            layer.linear(capsule(filled((0, 5))), capsule(np.empty((0, 16), np.float16)), capsules(there), 0)
            form, parts = packed((5, 16, 3, 3), scheme)
            layer, there = on_gpu(form, parts)
            layer.conv2d(capsule(filled((0, 2, 2, 5))), capsule(np.empty((0, 4, 4, 16), np.float16)), 1, 0,
                         capsules(there), 0)

    def test_the_order_comes_back_to_the_files(self):
        for scheme in [*SCHEMES, *(scheme for _, scheme in ROTATED)]:
            for shape in [*MATRICES, *FILTERS, (70, 64, 3, 3)]:
                if ":rotated" in scheme and shape[1] % 72 != 0:
                    continue
                form, parts = packed(shape, scheme)
                layer, there = on_gpu(form, parts)
                for ours, file in zip(layer.file_order(there), (parts[0], parts[3]), strict=True):
                    self.assertEqual(ours is None, file is None)
                    if file is not None:
                        np.testing.assert_array_equal(ours, file, err_msg=f"{scheme} {shape}")

    def test_work_is_ordered_by_the_callers_stream(self):
        form, parts = packed((70, 128), "linear:4:channel")
        layer, there = on_gpu(form, parts)
        x = weights((3, 128), seed=2).astype(np.float16)
        expected = filled((3, 70))
        layer.linear(capsule(expected), capsule(x), capsules(there), 0)
        for _ in range(10):  # more streams than backends are kept
            stream, memory, y, got = Stream(), np.zeros_like(x), filled((3, 70)), filled((3, 70))
            stream.copy_later(memory, x)
            layer.linear(capsule(y), capsule(memory), capsules(there), stream.cuda_stream)
            self.assertTrue(np.isnan(y).all(), "the input was not there yet")
            stream.copy_later(got, y)
            stream.synchronize()
            np.testing.assert_array_equal(got, expected)

    def test_what_is_no_layer_or_input_is_refused(self):
        form, parts = packed((70, 128), "linear:4:channel")
        layer, there = on_gpu(form, parts)
        x, y = np.zeros((3, 128), np.float16), filled((3, 70))

        def call(x=x, there=there, numbers=(0, 0, 0)):
            layer.linear(capsule(y, numbers[0]), capsule(x, numbers[1]), capsules(there, numbers[2]), 0)

        for numbers in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
            with self.assertRaisesRegex(ValueError, "other GPUs"):
                call(numbers=numbers)
        for shape in ((3, 64), (3, 256), (2, 128)):
            with self.assertRaises(ValueError):
                call(x=np.zeros(shape, np.float16))
        for bad in ([there[0][:-16], *there[1:]], [*there[:5], there[5][:-4]], [None, *there[1:]],
                    [there[0][1:], *there[1:]], there[:5], [*there, None]):
            with self.assertRaises(ValueError):
                call(there=bad)
        shifted = np.zeros(len(there[0]) + 32, np.uint8)
        begin = -shifted.ctypes.data % 16 + 4
        with self.assertRaisesRegex(ValueError, "aligned"):
            call(there=[shifted[begin:begin + len(there[0])], *there[1:]])
        for wrong in (x.astype(np.float64), x[:, ::2], x[0]):
            with self.assertRaises((TypeError, ValueError)):
                call(x=wrong)
        with self.assertRaisesRegex(ValueError, "convolution"):
            layer.conv2d(capsule(filled((1, 1, 1, 70))), capsule(np.zeros((1, 1, 1, 128), np.float16)), 1, 0,
                         capsules(there), 0)
        self.assertTrue(np.isnan(y).all())
        form, parts = packed((5, 3, 3, 3), "linear:4:channel")
        layer, there = on_gpu(form, parts)
        for stride, padding in ((0, 0), (-1, 0), (1, -1), (2**32, 0), (1, 2**21)):
            with self.assertRaises(ValueError):
                layer.conv2d(capsule(filled((1, 2, 2, 5))), capsule(np.zeros((1, 4, 4, 3), np.float16)), stride, padding,
                             capsules(there), 0)

    def test_parts_that_decode_to_no_numbers_do_not_get_there(self):
        form, parts = packed((5, 70), "linear:4:channel")
        scales = np.array(parts[1])
        scales[:4] = np.frombuffer(np.float32(np.nan).tobytes(), np.uint8)
        with self.assertRaisesRegex(nibblenet.Error, "^layer"):
            form.for_gpu([parts[0], scales, *parts[2:]], "layer")
        form, parts = packed((5, 70), "stable-embedding:5:sorted:20")
        ids = np.full_like(parts[3], 255)
        with self.assertRaisesRegex(nibblenet.Error, "^layer"):
            form.for_gpu([*parts[:3], ids, *parts[4:]], "layer")

    def test_ids_of_no_block_are_the_last_ones(self):
        for shape in ((5, 70), (5, 10, 3, 3)):
            form, parts = packed(shape, "stable-embedding:5:sorted:20")
            columns, groups = int(np.prod(shape[1:])), np.array(parts[1]).size // 4
            bits = (groups - 1).bit_length()
            self.assertLess(groups, 1 << bits)  # there are such ids
            layer, there = on_gpu(form, parts)
            fields = [[groups - 1 >> bit & 1 for bit in range(bits)] * columns, [1] * bits * columns]
            results = []
            for row in fields:  # written by hand where a GPU reads them, checked by nobody
                packed_row = np.packbits(row, bitorder="little")
                there[3] = np.zeros_like(parts[3])
                there[3][:, :len(packed_row)] = packed_row
                if len(shape) == 2:
                    y, x = filled((3, 5)), weights((3, 70), seed=2).astype(np.float16)
                    layer.linear(capsule(y), capsule(x), capsules(there), 0)
                else:
                    y, x = filled((2, 4, 5, 5)), weights((2, 6, 7, 10), seed=2).astype(np.float16)
                    layer.conv2d(capsule(y), capsule(x), 1, 0, capsules(there), 0)
                results.append(y)
            self.assertTrue(np.isfinite(results[0]).all())
            np.testing.assert_array_equal(results[1], results[0])
            file = layer.file_order([None if part is None else np.array(part) for part in there])
            with self.assertRaisesRegex(nibblenet.Error, "^it: block id 31 of"):
                form.validate([file[0], *parts[1:3], file[1], *parts[4:]], "it")


class Modules(WithDoubles):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        warnings.simplefilter("ignore")

    LAYERS = ["linear:4:channel", "linear:3:block:7:zero-point", "kmeans:3:channel:f16", "stable-embedding:5:sorted:20",
              "trellis:2:channel", "linear:5:row:f16", "linear:4:channel:rotated"]

    def layers(self, seed=1):
        torch.manual_seed(seed)
        for scheme in self.LAYERS:
            yield packed_torch.Linear.of(nn.Linear(128, 70), scheme).eval()
            yield packed_torch.Conv2d.of(nn.Conv2d(64, 70, 3, padding=1, bias=False), scheme).eval()

    def there(self, module):
        """The module on the GPU that is the host."""
        return module._apply(lambda part: double(part) if part.device.type == "cpu" else part)

    def back(self, module):
        return module._apply(lambda part: part.cpu())

    def input(self, layer):
        torch.manual_seed(2)
        return torch.randn(3, 128) if isinstance(layer, packed_torch.Linear) else torch.randn(2, 64, 6, 5)

    def assert_same_state(self, state, expected):
        self.assertEqual(list(state), list(expected))
        for name, part in expected.items():
            self.assertTrue(torch.equal(state[name].cpu(), part), name)

    def test_they_compute_there_as_here(self):
        for layer in self.layers():
            x = self.input(layer)
            with torch.no_grad():
                expected = layer(x)
                self.there(layer)
                for given in (x, x.half()):
                    before, y = given.clone(), layer(double(given))
                    self.assertEqual((y.dtype, str(y.device), y.shape), (given.dtype, "cuda:0", expected.shape))
                    self.assertTrue(torch.equal(given, before), "the input changed")
                    bound = 4e-3 * float(expected.abs().max())
                    torch.testing.assert_close(torch.from_numpy(plain(y)).float(), expected, rtol=4e-3, atol=bound)
                if x.dim() == 4:
                    last = layer(x.to(memory_format=torch.channels_last).as_subclass(type(y)))
                    self.assertTrue(last.is_contiguous(memory_format=torch.channels_last))
                    np.testing.assert_array_equal(plain(last), plain(layer(double(x))))

    def test_packed_bytes_lie_there_once(self):
        for layer in self.layers():
            resident = layer.resident
            self.there(layer)
            self.assertEqual({str(part.device) for part in layer.buffers()}, {"cuda:0"})
            self.assertEqual(sum(part.nbytes for part in layer.buffers()), layer.resident)
            self.assertLessEqual(layer.resident, resident)
            layer(double(self.input(layer)))
            self.assertEqual(sum(part.nbytes for part in layer.buffers()), layer.resident)

    def test_states_copies_and_pickles_have_the_files_order(self):
        for layer in self.layers():
            before = {name: part.clone() for name, part in layer.state_dict().items()}
            floats = layer.dequantize()
            self.there(layer)
            y = plain(layer(double(self.input(layer))))
            self.assert_same_state(layer.state_dict(), before)
            np.testing.assert_array_equal(plain(layer.dequantize()), floats.numpy())
            for made in (copy.deepcopy(layer), copy.copy(layer)):
                self.assert_same_state(made.state_dict(), before)
                np.testing.assert_array_equal(plain(made(double(self.input(layer)))), y)
                self.assert_same_state(self.back(made).state_dict(), before)
            self.assert_same_state(layer.state_dict(), before)
            self.back(layer)
            self.assert_same_state(layer.state_dict(), before)
            self.assertTrue(torch.equal(layer.dequantize(), floats))

    def test_a_pickle_is_read_on_the_cpu(self):
        for layer in self.layers():
            before = {name: part.clone() for name, part in layer.state_dict().items()}
            self.there(layer)
            state = layer.__getstate__()
            state["_buffers"] = {name: part if part is None else part.cpu() for name, part in state["_buffers"].items()}
            made = type(layer).__new__(type(layer))
            made.__setstate__(pickle.loads(pickle.dumps(state)))
            self.assert_same_state(made.state_dict(), before)
            self.assertTrue(torch.equal(made.eval()(self.input(layer)), self.back(layer)(self.input(layer))))

    def test_states_are_loaded_there(self):
        for layer, other in zip(self.layers(), self.layers(seed=2), strict=True):
            state = other.state_dict()
            expected = plain(self.there(copy.deepcopy(other))(double(self.input(layer))))
            self.there(layer)
            former = layer.state_dict()
            layer.load_state_dict(state)
            self.assert_same_state(layer.state_dict(), state)
            self.assertIsNotNone(layer._gpu_layer)
            np.testing.assert_array_equal(plain(layer(double(self.input(layer)))), expected)
            layer.load_state_dict(former)  # tensors of the GPU
            self.assertFalse(torch.equal(layer.state_dict()["codes"].cpu(), state["codes"]))
            layer.load_state_dict(state)
            broken = dict(state, scales=torch.full_like(state["scales"], 255))
            y = plain(layer(double(self.input(layer))))
            with self.assertRaisesRegex(RuntimeError, "finite|NaN|scale"):
                layer.load_state_dict(broken)
            np.testing.assert_array_equal(plain(layer(double(self.input(layer)))), y)
            if layer.block_ids is not None:
                broken = dict(state, block_ids=torch.full_like(state["block_ids"], 255))
                with self.assertRaisesRegex(RuntimeError, "block id"):
                    layer.load_state_dict(broken)
                np.testing.assert_array_equal(plain(layer(double(self.input(layer)))), y)
            layer.load_state_dict(state, assign=True)  # tensors of the CPU
            self.assertEqual(str(layer.codes.device), "cpu")
            torch.testing.assert_close(layer(self.input(layer)), torch.from_numpy(y), rtol=1e-2, atol=1e-1)

    def test_a_move_that_fails_leaves_the_layer_as_it_was(self):
        def full(part):
            if part.numel() > 0 and part.dtype == torch.uint8 and calls.append(1) is None and len(calls) == fails_at:
                raise MemoryError("the GPU is full")
            return double(part)

        for fails_at in (1, 2):
            layer = next(self.layers())
            x, calls = self.input(layer), []
            before, y = {name: part.clone() for name, part in layer.state_dict().items()}, layer(x)
            with self.assertRaises(MemoryError):
                layer._apply(full)
            self.assert_same_state(layer.state_dict(), before)
            self.assertTrue(torch.equal(layer(x), y))

    def test_files_order_on_a_gpu_becomes_a_gpus_at_the_first_call(self):
        for layer in self.layers():
            expected = plain(self.there(copy.deepcopy(layer))(double(self.input(layer))))
            with unittest.mock.patch.object(_core, "has_cuda", False):
                self.there(layer)
            self.assertIsNone(layer._gpu_layer)
            np.testing.assert_array_equal(plain(layer(double(self.input(layer)))), expected)
            self.assertIsNotNone(layer._gpu_layer)

    def test_other_inputs_are_refused(self):
        layer = next(self.layers())
        x = self.input(layer)
        with self.assertRaisesRegex(ValueError, "the input is on cuda:0, .* on cpu: call"):
            layer(double(x))
        self.there(layer)
        with self.assertRaisesRegex(ValueError, "the input is on cpu, .* on cuda:0: call"):
            layer(x)
        for wrong in (x.double(), x.bfloat16(), x.int()):
            with self.assertRaisesRegex(ValueError, "float16"):
                layer(double(wrong))
        with self.assertRaisesRegex(ValueError, "no_grad"):
            layer(double(x).requires_grad_())
        with self.assertRaisesRegex(ValueError, "128"):
            layer(double(x[:, :5]))
        with self.assertRaisesRegex(nibblenet.Error, "eval"):
            layer.train()(double(x))
        layer.eval().scales = layer.scales.cpu()
        with self.assertRaisesRegex(ValueError, "scales is on cpu, not on cuda:0"):
            layer(double(x))

    def test_a_network_gives_the_logits_of_the_model(self):
        packed_model = nibblenet.pack(state_dict(), bits=4, layers={"classifier.1": "trellis:2"}, device="cuda")
        model = alexnet()
        packed_torch.replace(model, packed_model)
        images = prepared(2)
        with torch.no_grad():
            y = self.there(model)(double(torch.from_numpy(images)))
        expected = packed_model(images)
        np.testing.assert_allclose(plain(y), expected, rtol=1e-2, atol=1e-2 * np.abs(expected).max())
        resident = {row["name"]: row["resident"]["total"] for row in packed_model.size.layers}
        self.assertEqual({name: layer.resident for name, layer in model.named_modules()
                          if isinstance(layer, packed_torch.PackedLayer)}, resident)

    def test_they_compute_in_the_order_of_the_current_stream(self):
        layer = self.there(next(self.layers()))
        x = self.input(layer).half()
        expected, memory = plain(layer(double(x))), double(torch.zeros_like(x))
        self.stream.copy_later(plain(memory), x.numpy())
        y = layer(memory)
        self.stream.synchronize()
        np.testing.assert_array_equal(plain(y), expected)


class WithGpu(unittest.TestCase):
    """With a real GPU: what doubles stand in for above."""

    @classmethod
    def setUpClass(cls):
        if torch is None or not torch.cuda.is_available():
            raise unittest.SkipTest("PyTorch sees no GPU")
        if not _core.has_cuda:
            raise unittest.SkipTest("this build has no CUDA backend")

    def test_a_network_moves_there_and_back(self):
        model = alexnet()
        packed_torch.quantize(model, bits=4)
        state = {name: part.clone() for name, part in model.state_dict().items()}
        x = torch.from_numpy(prepared(2))
        with torch.no_grad():
            expected = model(x)
            before = torch.cuda.memory_allocated()
            model.cuda()
            resident = sum(part.nbytes for part in model.buffers())
            self.assertLess(torch.cuda.memory_allocated() - before - resident, 512 * len(list(model.buffers())))
            for given in (x, x.half()):
                y = model(given.cuda())
                self.assertEqual(y.dtype, given.dtype)
                torch.testing.assert_close(y.cpu().float(), expected, rtol=2e-2, atol=2e-2 * float(expected.abs().max()))
            file = io.BytesIO()
            torch.save(model, file)
            file.seek(0)
            for made in (copy.deepcopy(model), torch.load(file, weights_only=False)):
                torch.testing.assert_close(made(x.cuda()), model(x.cuda()), rtol=0, atol=0)
            file.seek(0)
            torch.testing.assert_close(torch.load(file, map_location="cpu", weights_only=False)(x), expected, rtol=0, atol=0)
            for name, part in model.state_dict().items():
                self.assertTrue(torch.equal(part.cpu(), state[name]), name)
            torch.testing.assert_close(model.cpu()(x), expected, rtol=0, atol=0)

    def test_a_network_on_a_gpu_is_packed_there(self):
        for dtype in (torch.float32, torch.float16):
            model = alexnet().to("cuda", dtype)
            expected = alexnet().to(dtype).float()
            packed_torch.quantize(model, bits=4)
            packed_torch.quantize(expected, bits=4)
            for name, part in model.state_dict().items():
                self.assertTrue(torch.equal(part.cpu(), expected.state_dict()[name]), name)

    def test_they_compute_in_the_order_of_the_current_stream(self):
        layer = packed_torch.Linear.of(nn.Linear(4096, 4096), "linear:4:channel").eval().cuda()
        x = torch.randn(8, 4096).half()
        expected = layer(x.cuda())
        for stream in (torch.cuda.default_stream(), torch.cuda.Stream()):
            with torch.cuda.stream(stream):
                for _ in range(20):
                    memory = torch.zeros_like(x, device="cuda")
                    torch.cuda._sleep(10_000_000)
                    memory.copy_(x.cuda(non_blocking=True))
                    y = layer(memory)
                    memory.zero_()
                    torch.testing.assert_close(y, expected, rtol=0, atol=0)


if __name__ == "__main__":
    unittest.main()
