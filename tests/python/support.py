"""What the tests of the Python package share: a small AlexNet, and files of it."""

import json
import struct
import threading

import numpy as np

LAYERS = {
    "features.0": (8, 3, 11, 11),
    "features.3": (12, 8, 5, 5),
    "features.6": (16, 12, 3, 3),
    "features.8": (12, 16, 3, 3),
    "features.10": (12, 12, 3, 3),
    "classifier.1": (32, 12 * 36),
    "classifier.4": (32, 32),
    "classifier.6": (10, 32),
}


def state_dict(seed=0):
    """Names and float32 arrays."""
    random = np.random.default_rng(seed)
    parameters = {}
    for layer, shape in LAYERS.items():
        bound = np.sqrt(6 / np.prod(shape[1:]))
        parameters[f"{layer}.weight"] = random.uniform(-bound, bound, shape).astype(np.float32)
        parameters[f"{layer}.bias"] = random.uniform(-0.1, 0.1, shape[:1]).astype(np.float32)
    return parameters


def write_safetensors(path, parameters, **metadata):
    """A float model's file, written independently of nibblenet."""
    header, offset = {"__metadata__": metadata} if metadata else {}, 0
    for name, values in parameters.items():
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [offset, offset + values.nbytes]}
        offset += values.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for values in parameters.values():
            file.write(values.tobytes())


def pictures(count, size=32, seed=1):
    """uint8 [count, size, size, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def wrong_in_threads(compute, inputs, expected):
    """Positions of inputs for which one of ten calls in a thread of its own gave another array."""
    wrong = []

    def work(i):
        for _ in range(10):
            if not np.array_equal(compute(inputs[i]), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong


def write_cifar10(folder, test=40, train=200, seed=3):
    """CIFAR-10's binary version of drawn noise, as many images of each class in every file."""
    random = np.random.default_rng(seed)
    for name, count in [*((f"data_batch_{i}.bin", train // 5) for i in range(1, 6)), ("test_batch.bin", test)]:
        records = random.integers(0, 256, (count, 1 + 3 * 32 * 32), dtype=np.uint8)
        records[:, 0] = np.arange(count) % 10
        (folder / name).write_bytes(records.tobytes())


def prepared(count, size=64, seed=2):
    """float32 [count, 3, size, size]."""
    return np.random.default_rng(seed).standard_normal((count, 3, size, size)).astype(np.float32)


def fake_quantized(weights, bits, axis=0):
    """Symmetric rounding in float32, as notebooks do it: one step for each index of `axis`, or for all."""
    others = None if axis is None else tuple(i for i in range(weights.ndim) if i != axis)
    most = np.float32(2 ** (bits - 1) - 1)
    step = np.abs(weights).max(axis=others, keepdims=True) / most
    return (np.round(weights / step).clip(-most, most) * step).astype(np.float32)
