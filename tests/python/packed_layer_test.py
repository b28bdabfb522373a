"""Packed layers on bytes that Python owns: what nibblenet.torch is made of, without PyTorch."""

import json
import random
import tempfile
import unittest
from pathlib import Path

import numpy as np

import nibblenet
from nibblenet import _core
from support import state_dict

SCHEMES = ["linear:4:channel", "linear:2:tensor", "linear:5:row:f16", "linear:3:block:7:zero-point",
           "linear:4:tile:2x3", "nf4:4:block:16:f16", "fp4:4:channel", "kmeans:3:channel", "fp8-e4m3:8:channel",
           "dynamic-tree:6:channel", "stable-embedding:4:sorted:10", "stable-embedding:5:sorted",
           "stable-embedding-fp8:8:sorted:33", "trellis:2:channel", "trellis:1.25:channel:f16",
           "trellis:0.5:channel"]
MATRICES = [(1, 1), (3, 5), (17, 31), (130, 70), (8, 2050), (321, 3)]
FILTERS = [(1, 1, 1, 1), (5, 3, 3, 3), (70, 4, 5, 5), (64, 2, 1, 1)]


def weights(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def packed(shape, scheme, bias=True):
    """A form and its parts."""
    biases = weights(shape[:1], seed=1) if bias else None
    return _core.PackedLayer(scheme, list(shape)), _core.pack_layer(weights(shape), biases, scheme, "layer")


def planes(images):
    """Images [N, H, W, C] as [N, C, H, W]."""
    return images.transpose(0, 3, 1, 2)


def window(images, size, stride, padding):
    """[N, P, Q, R, S, C] of images [N, H, W, C]."""
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    view = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))
    return view[:, ::stride, ::stride].transpose(0, 1, 2, 4, 5, 3)


class Computing(unittest.TestCase):
    def test_matrices(self):
        for scheme in SCHEMES:
            for shape in MATRICES:
                for batch in (1, 2, 9):
                    for bias in (True, False):
                        layer, parts = packed(shape, scheme, bias)
                        x, y = weights((batch, shape[1]), seed=2), np.full((batch, shape[0]), np.nan, np.float32)
                        layer.linear(y, x, parts)
                        expected = x.astype(np.float64) @ layer.dequantized(parts).T
                        if bias:
                            expected += weights(shape[:1], seed=1)
                        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4, err_msg=f"{scheme} {shape}")

    def test_convolutions(self):
        for scheme in SCHEMES:
            for shape in FILTERS:
                for stride, padding in ((1, 0), (2, 1), (3, 2)):
                    layer, parts = packed(shape, scheme)
                    x = weights((2, 11, 8, shape[1]), seed=2)
                    windows = window(x, shape[2], stride, padding)
                    y = np.full((*windows.shape[:3], shape[0]), np.nan, np.float32)
                    layer.conv2d(planes(y), planes(x), stride, padding, parts)
                    expected = np.einsum("npqrsc,kcrs->npqk", windows, layer.dequantized(parts), dtype=np.float64)
                    expected += weights(shape[:1], seed=1)
                    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4, err_msg=f"{scheme} {shape}")

    def test_images_of_any_strides_give_the_same_bits(self):
        layer, parts = packed((70, 21, 3, 3), "linear:4:channel")
        for count, height, width in ((1, 3, 3), (2, 5, 40), (3, 33, 34)):
            x = weights((count, 21, height, width), seed=2)
            shape = (count, 70, height - 2, width - 2)
            expected = planes(np.empty((count, height - 2, width - 2, 70), np.float32))
            layer.conv2d(expected, planes(np.ascontiguousarray(x.transpose(0, 2, 3, 1))), 1, 0, parts)
            inputs = (x, x[:, :, ::-1, ::-1].copy()[:, :, ::-1, ::-1], x.transpose(3, 1, 0, 2).copy().transpose(2, 1, 3, 0),
                      np.repeat(x, 2, axis=1)[:, ::2], np.pad(x, ((0, 0), (0, 0), (1, 2), (3, 0)))[:, :, 1:-2, 3:])
            for given in inputs:
                self.assertTrue(np.array_equal(given, x))
                for y in (np.full(shape, np.nan, np.float32), np.full(shape[::-1], np.nan, np.float32).T,
                          np.full((*shape[:3], 2 * shape[3]), np.nan, np.float32)[..., ::-2]):
                    layer.conv2d(y, given, 1, 0, parts)
                    self.assertTrue(np.array_equal(y, expected), (given.strides, y.strides))

    def test_rotated_weights_read_rotated_inputs(self):
        for shape, scheme in (((70, 24), "linear:4:channel:rotated"), ((5, 72), "kmeans:3:channel:f16:rotated:9"),
                              ((300, 72), "trellis:1.5:channel:rotated:9")):
            layer, parts = packed(shape, scheme)
            x, y = weights((3, shape[1]), seed=2), np.full((3, shape[0]), np.nan, np.float32)
            layer.linear(y, x, parts)
            expected = x.astype(np.float64) @ layer.dequantized(parts).T + weights(shape[:1], seed=1)
            np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4, err_msg=scheme)
            np.testing.assert_array_equal(x, weights((3, shape[1]), seed=2), err_msg="the input changed")
        layer, parts = packed((5, 16, 3, 3), "linear:5:block:7:rotated")
        x, y = weights((2, 9, 7, 16), seed=2), np.full((2, 7, 5, 5), np.nan, np.float32)
        layer.conv2d(planes(y), planes(x), 1, 0, parts)
        expected = np.einsum("npqrsc,kcrs->npqk", window(x, 3, 1, 0), layer.dequantized(parts), dtype=np.float64)
        np.testing.assert_allclose(y, expected + weights((5,), seed=1), rtol=1e-4, atol=1e-4)

    def test_rotated_weights_refuse_other_inputs(self):
        layer, parts = packed((70, 24), "linear:4:channel:rotated")
        for channels in (1, 8, 23, 25, 48):
            with self.assertRaisesRegex(ValueError, "channels differ"):
                layer.linear(np.empty((3, 70), np.float32), weights((3, channels)), parts)
        layer, parts = packed((5, 16, 3, 3), "linear:4:channel:rotated")
        for channels in (1, 8, 17, 32):
            with self.assertRaisesRegex(ValueError, "channels or sizes differ"):
                layer.conv2d(np.empty((1, 5, 1, 1), np.float32), weights((1, channels, 3, 3)), 1, 0, parts)

    def test_images_of_many_sizes(self):
        layer, parts = packed((2, 1, 1, 1), "linear:8:channel", bias=False)
        value = layer.dequantized(parts).reshape(1, 1, 2)
        for height in range(1, 41):
            for width in range(1, 21):  # more than the compiled convolutions that are kept
                y, x = np.empty((1, height, width, 2), np.float32), np.ones((1, height, width, 1), np.float32)
                layer.conv2d(planes(y), planes(x), 1, 0, parts)
                self.assertTrue((y[0] == value).all())

    def test_no_rows_and_no_images(self):
        layer, parts = packed((5, 3), "linear:4:channel")
        layer.linear(np.empty((0, 5), np.float32), np.empty((0, 3), np.float32), parts)
        layer, parts = packed((5, 3, 3, 3), "linear:4:channel")
        layer.conv2d(np.empty((0, 5, 2, 2), np.float32), np.empty((0, 3, 4, 4), np.float32), 1, 0, parts)


class Parts(unittest.TestCase):
    @unittest.skipIf(_core.has_cuda, "this build has a CUDA backend")
    def test_without_cuda_no_layer_goes_to_a_gpu(self):
        layer, parts = packed((5, 3), "linear:4:channel")
        with self.assertRaisesRegex(ValueError, "^this build has no CUDA backend$"):
            layer.for_gpu(parts, "layer")

    def test_they_are_a_files(self):
        model = nibblenet.pack(state_dict(), layers={"classifier.4": "kmeans:3", "features.3": "stable-embedding:4",
                                                     "classifier.6": "trellis:1.5",
                                                     "features.6": "linear:4:row:f16:zero-point"})
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model"
            model.save(path)
            data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header, data = json.loads(data[8:8 + length]), data[8 + length:]
        resident = {row["name"]: row["resident"]["total"] for row in model.size.layers}
        for name, scheme, shape, geometry in _core.packed_layers(model._core):
            self.assertEqual(scheme, header["__metadata__"][f"scheme:{name}.weight"])
            self.assertEqual("x".join(map(str, shape)), header["__metadata__"][f"shape:{name}.weight"])
            self.assertEqual(geometry, {"features.0": [4, 2], "features.3": [1, 2]}.get(name, [1, 1])
                             if name.startswith("features") else [])
            parts = _core.layer_parts(model._core, name)
            by_us = _core.pack_layer(state_dict()[f"{name}.weight"], state_dict()[f"{name}.bias"], scheme, name)
            for part, ours, title in zip(parts, by_us, ("weight.codes", "weight.scales", "weight.zero_points",
                                                        "weight.block_ids", "weight.codebook", "bias"), strict=True):
                entry = header.get(f"{name}.{title}")
                self.assertEqual(part is None, entry is None, title)
                if part is not None:
                    begin, end = entry["data_offsets"]
                    self.assertEqual(part.tobytes(), data[begin:end], title)
                    self.assertEqual(part.tobytes(), ours.tobytes(), title)
            self.assertEqual(sum(part.nbytes for part in parts if part is not None), resident[name])

    def test_other_sizes_are_refused(self):
        for scheme in SCHEMES:
            layer, parts = packed((6, 40), scheme)
            y, x = np.empty((2, 6), np.float32), weights((2, 40))
            for i, part in enumerate(parts):
                wrong = [np.zeros(3, np.uint8)] if part is None else [part.ravel()[:-1], np.append(part, part), None]
                if i == 5:
                    wrong = wrong[:2]  # a bias may be missing
                for each in wrong:
                    other = [*parts[:i], each, *parts[i + 1:]]
                    for call in (lambda: layer.linear(y, x, other), lambda: layer.validate(other, "it"),
                                 lambda: layer.dequantized(other)):
                        with self.assertRaises((ValueError, nibblenet.Error)):
                            call()
            layer.validate(parts, "it")
        odd = np.zeros(6 * 4 + 1, np.uint8)[1:]
        layer, parts = packed((6, 40), "linear:4:channel")
        with self.assertRaisesRegex(ValueError, "aligned"):
            layer.linear(y, x, [parts[0], odd if odd.ctypes.data % 4 else odd[1:], *parts[2:]])

    def test_bytes_that_decode_to_no_numbers_are_found(self):
        layer, parts = packed((6, 40), "linear:4:channel")
        for i in (1, 5):
            bad = [None if part is None else part.copy() for part in parts]
            bad[i].view(np.float32)[2] = np.nan
            with self.assertRaisesRegex(nibblenet.Error, "^it: .*NaN"):
                layer.validate(bad, "it")
        with self.assertRaisesRegex(nibblenet.Error, "NaN"):
            _core.pack_layer(weights((2, 2)), np.array([1, np.inf], np.float32), "linear:4:channel", "it")

    def test_any_bytes_are_safe_to_compute_with(self):
        chance = np.random.default_rng(3)
        for scheme in SCHEMES:
            for shape in ((6, 41), (5, 3, 3, 3)):
                layer, parts = packed(shape, scheme)
                for fill in (0, 255, None):
                    junk = [part if part is None else chance.integers(0, 256, part.shape, np.uint8) if fill is None
                            else np.full_like(part, fill) for part in parts]
                    if len(shape) == 2:
                        layer.linear(np.empty((2, 6), np.float32), weights((2, 41)), junk)
                    else:
                        layer.conv2d(np.empty((1, 5, 4, 4), np.float32), weights((1, 3, 6, 6)), 1, 0, junk)


class Arguments(unittest.TestCase):
    def test_shapes_that_do_not_fit_are_refused(self):
        layer, parts = packed((6, 40), "linear:4:channel")
        for y, x in (((2, 6), (2, 39)), ((2, 5), (2, 40)), ((3, 6), (2, 40))):
            with self.assertRaises(ValueError):
                layer.linear(np.empty(y, np.float32), weights(x), parts)
        filters, bytes_ = packed((5, 3, 3, 3), "linear:4:channel")
        with self.assertRaises(ValueError):
            layer.conv2d(np.empty((1, 5, 4, 4), np.float32), weights((1, 3, 6, 6)), 1, 0, parts)
        for y, x, stride, padding in (((1, 4, 4, 5), (1, 6, 6, 3), 2, 0), ((1, 4, 4, 5), (1, 6, 6, 3), 0, 0),
                                      ((1, 4, 4, 5), (1, 6, 6, 3), 1, -1), ((1, 4, 4, 5), (1, 6, 6, 3), 2**62, 2**62),
                                      ((1, 0, 0, 5), (1, 2, 2, 3), 1, 0), ((1, 4, 4, 5), (1, 6, 6, 2), 1, 0)):
            with self.assertRaises(ValueError):
                filters.conv2d(planes(np.empty(y, np.float32)), planes(weights(x)), stride, padding, bytes_)

    def test_forms_that_do_not_exist_are_refused(self):
        for scheme, shape in (("linear:4:rotated", [2, 12]), ("linear:4:rotated:3", [2, 8]),
                              ("linear:9", [2, 2]), ("", [2, 2]), ("linear:4:sorted", [2, 2]), ("linear:4", [2]),
                              ("linear:4", [0, 2]), ("linear:4", [2**31, 2**31]), ("linear:4", [-1, 2]),
                              ("linear:4", [2, 2, 2, 2, 2]), ("trellis:2:tensor", [2, 2]), ("trellis:5", [2, 2]),
                              ("trellis:2:channel:rotated", [2, 12]), ("trellis:2", [2**31, 2**31]),
                              ("trellis:2", [0, 2])):
            with self.subTest(scheme, shape=shape), self.assertRaises(ValueError):
                _core.PackedLayer(scheme, shape)

    def test_schemes_are_chosen_as_pack_chooses_them(self):
        named = [(name, list(values.shape)) for name, values in state_dict().items() if values.ndim > 1]
        for options in ({}, {"bits": 2}, {"method": "kmeans", "bits": 3}, {"layers": {"*.1*": "linear:8:channel"}}):
            model = nibblenet.pack(state_dict(), **options)
            arguments = [f"--layer={pattern}={scheme}" for pattern, scheme in options.get("layers", {}).items()]
            arguments += [f"--{name}={value}" for name, value in options.items() if name != "layers"]
            self.assertEqual(_core.choose_schemes(arguments, named),
                             [scheme for _, scheme, _, _ in _core.packed_layers(model._core)])
        with self.assertRaisesRegex(ValueError, "there are my.layer"):
            _core.choose_schemes(["--layer=none=linear:4"], [("my.layer.weight", [2, 2])])

    def test_names_are_those_behind_prefixes(self):
        self.assertEqual(_core.adopted_names(["a._orig_mod.features.module.0.weight", "head.weight"]),
                         [("features.0.weight", "a._orig_mod.features.module.0.weight"),
                          ("head.weight", "head.weight")])
        with self.assertRaises(nibblenet.Error):
            _core.adopted_names(["a.features.0.weight", "b.features.0.weight"])

    def test_random_arguments_never_end_the_process(self):
        chance, numbers = random.Random(5), np.random.default_rng(5)
        layer, parts = packed((6, 40), "stable-embedding:4:sorted:10")
        filters, bytes_ = packed((5, 3, 3, 3), "kmeans:3")

        def any_array():
            shape = tuple(chance.choice((0, 1, 2, 3, 6, 40)) for _ in range(chance.choice((1, 2, 2, 4, 4))))
            values = numbers.integers(0, 9, shape).astype(chance.choice(("u1", "f4", "f4", "f8", ">f4")))
            return values[::-1] if chance.random() < 0.2 else values

        def anything():
            return chance.choice((None, -1, 0, 3, 2**70, "x", [], parts, bytes_, parts[:3], [*parts[:5], any_array()],
                                  [any_array() for _ in range(6)], any_array(), any_array(), object()))

        calls = (lambda: layer.linear(any_array(), any_array(), anything()),
                 lambda: layer.linear(anything(), anything(), parts),
                 lambda: filters.conv2d(any_array(), any_array(), anything(), anything(), anything()),
                 lambda: filters.conv2d(anything(), anything(), chance.choice((1, 2)), 0, bytes_),
                 lambda: layer.validate(anything(), anything()), lambda: layer.dequantized(anything()),
                 lambda: _core.PackedLayer(anything(), anything()),
                 lambda: _core.pack_layer(anything(), anything(), chance.choice(SCHEMES), "x"),
                 lambda: _core.choose_schemes(anything(), anything()), lambda: _core.adopted_names(anything()))
        for _ in range(3000):
            try:
                chance.choice(calls)()
            except (ValueError, TypeError, nibblenet.Error):
                pass
        layer.linear(np.empty((2, 6), np.float32), weights((2, 40)), parts)


if __name__ == "__main__":
    unittest.main()
