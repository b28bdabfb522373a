"""Packed layers in PyTorch. Without PyTorch, all but the tests of importing are skipped."""

import copy
import io
import os
import pickle
import random
import subprocess
import sys
import tempfile
import textwrap
import unittest
import unittest.mock
import warnings
from pathlib import Path

import numpy as np

import nibblenet
from support import LAYERS, prepared, state_dict, wrong_in_threads

try:
    import torch
    from torch import nn

    import nibblenet.torch as packed_torch
except ModuleNotFoundError as absent:
    if absent.name != "torch":
        raise
    torch = None

SCHEMES = [{}, {"bits": 2}, {"method": "kmeans", "bits": 3},
           {"method": "nf4", "granularity": "block:32", "scale": "f16"},
           {"method": "linear", "bits": 5, "granularity": "row", "zero_point": True}, {"method": "fp8-e4m3"},
           {"method": "stable-embedding", "granularity": "sorted:100"}, {"layers": {"features.*": "linear:8:channel"}},
           {"layers": {"*": "trellis:1.5"}},
           {"layers": {"*": "trellis:2:channel:f16:rotated", "classifier.1": "linear:3:channel"}}]


def run(code, **options):
    """Runs a script that has what these tests have."""
    text = "from torch_test import *\nimport os\n" + textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", text], cwd=Path(__file__).parent, capture_output=True, text=True,
                          timeout=300, **options)


def network(parameters, network=None):
    """torchvision's AlexNet with the layers of a state dict."""
    def layer(name, *window):
        weight = torch.from_numpy(parameters[f"{name}.weight"])
        made = nn.Conv2d(*weight.shape[1::-1], weight.shape[2], *window) if window else nn.Linear(*weight.shape[::-1])
        made.weight.data, made.bias.data = weight.clone(), torch.from_numpy(parameters[f"{name}.bias"]).clone()
        return made

    class AlexNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(
                layer("features.0", 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
                layer("features.3", 1, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2),
                layer("features.6", 1, 1), nn.ReLU(), layer("features.8", 1, 1), nn.ReLU(inplace=True),
                layer("features.10", 1, 1), nn.ReLU(), nn.MaxPool2d(3, 2))
            self.avgpool = nn.AdaptiveAvgPool2d(6)
            self.classifier = nn.Sequential(nn.Dropout(), layer("classifier.1"), nn.ReLU(), nn.Dropout(),
                                            layer("classifier.4"), nn.ReLU(), layer("classifier.6"))

        def forward(self, x):
            x = self.avgpool(self.features(x))
            return self.classifier(x.view(len(x), -1) if x.is_contiguous() else x.flatten(1))

    return AlexNet()


def alexnet():
    return network(state_dict()).eval()


def images(count, size=64, seed=2):
    return torch.from_numpy(prepared(count, size, seed))


def outputs(model, x):
    with torch.no_grad():
        return model(x).numpy()


class Importing(unittest.TestCase):
    def test_nibblenet_alone_imports_no_pytorch(self):
        code = "import sys, nibblenet; dir(nibblenet), hasattr(nibblenet, 'x'); sys.exit('torch' in sys.modules)"
        self.assertEqual(subprocess.run([sys.executable, "-c", code]).returncode, 0)

    def test_without_pytorch_one_line_says_what_to_do(self):
        code = "import sys; sys.modules['torch'] = None; import nibblenet; "
        for use in ("import nibblenet.torch", "nibblenet.torch.replace"):
            done = subprocess.run([sys.executable, "-c", code + use], capture_output=True, text=True)
            self.assertEqual(done.stderr.splitlines()[-1],
                             "ModuleNotFoundError: nibblenet.torch needs PyTorch: pip install torch")


class WithTorch(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if torch is None:
            raise unittest.SkipTest("PyTorch is not installed")
        warnings.simplefilter("ignore")


class Layers(WithTorch):
    def compare(self, layer, x, scheme="linear:5:row:f16"):
        """A packed layer with a float one of the values that it decodes to."""
        packed = (packed_torch.Conv2d if isinstance(layer, nn.Conv2d) else packed_torch.Linear).of(layer, scheme).eval()
        same = copy.deepcopy(layer)
        same.weight.data = packed.dequantize()
        with torch.no_grad():
            y, expected = packed(x), same(x)
        self.assertEqual((y.shape, y.dtype), (expected.shape, expected.dtype))
        if y.dim() == 4 and y.numel() > 0:
            for layout in (torch.contiguous_format, torch.channels_last):
                self.assertEqual(y.is_contiguous(memory_format=layout), expected.is_contiguous(memory_format=layout))
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
        return packed

    def test_linear_takes_what_pytorchs_takes(self):
        for shape in ((7,), (1, 7), (20, 7), (2, 3, 7), (2, 1, 3, 1, 7), (0, 7), (2, 0, 7)):
            for bias in (True, False):
                self.compare(nn.Linear(7, 33, bias), torch.randn(shape))
        x = torch.randn(7, 20)
        for strided in (x.T, torch.randn(20, 14)[:, ::2], torch.randn(5, 1).expand(5, 7), x.T.flip(0)):
            self.compare(nn.Linear(7, 3), strided)

    def test_conv2d_takes_what_pytorchs_takes(self):
        for options in ({}, {"stride": 2}, {"padding": 2}, {"padding": (1, 1), "stride": (3, 3)}, {"padding": "same"},
                        {"padding": "valid"}, {"bias": False}):
            for channels in (1, 3, 70):
                layer = nn.Conv2d(channels, 66, 3, **options)
                for shape in ((2, channels, 9, 6), (channels, 9, 6), (0, channels, 9, 6), (1, channels, 3, 3)):
                    packed = self.compare(layer, torch.randn(shape), "nf4:4:block:16:f16")
        x = torch.randn(2, 70, 9, 6)
        for layout in (x.to(memory_format=torch.channels_last), x[:, :, ::2, 1:], x.transpose(2, 3), x.flip(1),
                       torch.randn(2, 1, 9, 6).expand(2, 70, 9, 6)):
            torch.testing.assert_close(packed(layout), packed(layout.clone(memory_format=torch.contiguous_format)))
        self.compare(nn.Conv2d(4, 5, 1, 2), torch.randn(1, 4, 7, 7), "stable-embedding:4:sorted:5")

    def test_channels_last_images_are_read_and_written_in_place(self):
        packed = packed_torch.Conv2d.of(nn.Conv2d(3, 5, 3), "linear:4:channel").eval()
        x = torch.randn(2, 3, 6, 6).to(memory_format=torch.channels_last)
        seen = []
        compute = packed._call
        packed._call = lambda function, y, pixels, *rest: (seen.append((y.ctypes.data, pixels.ctypes.data, y.strides)),
                                                           compute(function, y, pixels, *rest))
        y = packed(x)
        self.assertEqual(seen, [(y.data_ptr(), x.data_ptr(), tuple(4 * stride for stride in y.stride()))])
        self.assertTrue(y.is_contiguous(memory_format=torch.channels_last))

    def test_tensors_go_by_dlpack_where_numpy_is_too_new(self):
        packed = packed_torch.Conv2d.of(nn.Conv2d(3, 5, 3), "stable-embedding:4").eval()
        x = torch.randn(2, 3, 6, 6)
        expected = packed(x)
        with unittest.mock.patch.object(packed_torch, "_NUMPY", False):
            self.assertTrue(torch.equal(packed(x), expected))

    @unittest.skipIf("NIBBLENET_SANITIZED" in os.environ, "a sanitizer takes its time")
    def test_a_call_takes_little_beyond_its_product(self):
        for threads in ("1", "2"):
            done = run("""
                import time
                linear = packed_torch.Linear.of(nn.Linear(32, 10), "linear:4:channel").eval()
                conv = packed_torch.Conv2d.of(nn.Conv2d(8, 8, 3, padding=1), "linear:4:channel").eval()
                inputs = torch.randn(1, 8, 6, 6)

                def beyond(layer, x):
                    start = time.perf_counter()
                    layer(x)
                    return time.perf_counter() - start - layer._form().last_seconds

                for layer, x in ((linear, torch.randn(1, 32)), (conv, inputs),
                                 (conv, inputs.to(memory_format=torch.channels_last))):
                    print(1e6 * min(beyond(layer, x) for _ in range(2000)))  # other work may slow most
            """, env={**os.environ, "OMP_NUM_THREADS": threads})
            for microseconds in map(float, done.stdout.split()):
                self.assertLess(microseconds, 25, done.stdout)  # measured: 11 to 15, at 2 threads 14 to 20

    def test_bytes_that_move_are_found_again(self):
        packed = packed_torch.Linear.of(nn.Linear(6, 4), "linear:8:channel").eval()
        other = packed_torch.Linear.of(nn.Linear(6, 4), "linear:8:channel").eval()
        x = torch.randn(3, 6)
        before, expected = packed(x), other(x)
        self.assertFalse(torch.equal(before, expected))
        for name in ("codes", "scales", "bias_bytes"):
            packed._buffers[name].data = other._buffers[name].clone()  # the same tensor on other memory
        self.assertTrue(torch.equal(packed(x), expected))
        packed.share_memory()
        self.assertTrue(torch.equal(packed(x), expected))
        packed.codes = torch.zeros_like(packed.codes)
        self.assertFalse(torch.equal(packed(x), expected))
        packed.codes[:] = other.codes  # the same memory
        self.assertTrue(torch.equal(packed(x), expected))
        with self.assertRaises(RuntimeError):
            packed.codes.resize_(1 << 20)

    def test_compiled_models_give_the_same(self):
        model = nn.Sequential(nn.Linear(7, 33), nn.ReLU(), nn.Linear(33, 5)).eval()
        packed_torch.quantize(model)
        x = torch.randn(3, 7)
        self.assertTrue(np.array_equal(outputs(torch.compile(model, backend="eager"), x), outputs(model, x)))

    def test_layers_that_do_not_fit_are_refused(self):
        for layer, reason in ((nn.Conv2d(4, 4, 3, groups=2), "groups 2"), (nn.Conv2d(4, 4, 3, dilation=2), "dilation"),
                              (nn.Conv2d(4, 4, (3, 1)), "3 x 1"), (nn.Conv2d(4, 4, 3, (1, 2)), "stride"),
                              (nn.Conv2d(4, 4, 3, padding=(1, 2)), "padding"), (nn.Conv1d(4, 4, 3), "Conv1d"),
                              (nn.Conv2d(4, 4, 4, padding="same"), "one side"), (nn.Linear(4, 4).half(), "float16"),
                              (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "padding_mode"),
                              (nn.Linear(0, 4), "no weights"), (nn.LazyLinear(4), "LazyLinear"),
                              (nn.Linear(4, 4, device="meta"), "meta"), (nn.Linear(4, 4).double(), "float64"),
                              (None, "")):
            kind = packed_torch.Linear if isinstance(layer, nn.Linear) else packed_torch.Conv2d
            with self.subTest(str(layer)), self.assertRaisesRegex(ValueError, reason):
                kind.of(layer, "linear:4")
        for scheme in ("linear:9", "", "x"):
            with self.assertRaises(ValueError):
                packed_torch.Linear.of(nn.Linear(2, 2), scheme)
        layer = nn.Linear(2, 2)
        layer.weight.data[0, 0] = torch.nan
        with self.assertRaisesRegex(nibblenet.Error, "mine"):
            packed_torch.Linear.of(layer, "linear:4", "mine")


class Inputs(WithTorch):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.linear = packed_torch.Linear.of(nn.Linear(6, 4), "linear:4:channel").eval()
        cls.conv = packed_torch.Conv2d.of(nn.Conv2d(3, 4, 3), "linear:4:channel").eval()

    def test_others_are_refused_in_one_line(self):
        x, pixels = torch.randn(2, 6), torch.randn(2, 3, 5, 5)
        for layer, value, reason in (
                (self.linear, x.double(), "float32"), (self.linear, x.half(), "float32"),
                (self.linear, x.int(), "float32"), (self.linear, x.to_sparse(), "dense"),
                (self.linear, x.to("meta"), "meta"), (self.linear, x[:, :5], "6"),
                (self.linear, torch.tensor(1.0), "6"),
                (self.linear, x.numpy(), "ndarray"), (self.linear, None, "NoneType"),
                (self.linear, x.clone().requires_grad_(), "no_grad"),
                (self.linear, torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "float32"),
                (self.linear, x.to(torch.complex64), "float32"), (self.conv, pixels[:, :2], "3, H, W"),
                (self.conv, pixels[0, 0], "3, H, W"), (self.conv, pixels[None], "H"),
                (self.conv, pixels[:, :, :2], "smaller"), (self.conv, pixels[:, :, :, :0], "smaller"),
                (self.conv, pixels.half().to(memory_format=torch.channels_last), "float32")):
            with self.subTest(reason), self.assertRaisesRegex(ValueError, reason) as caught:
                layer(value)
            self.assertNotIn("\n", str(caught.exception))

    def test_grad_is_no_matter_where_it_is_off(self):
        x = torch.randn(2, 6)
        expected = self.linear(x)
        self.assertFalse(expected.requires_grad)
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                for value in (x, x.clone().requires_grad_(), nn.Parameter(x)):
                    self.assertTrue(torch.equal(self.linear(value), expected))

    def test_a_tangent_would_be_lost(self):
        with torch.autograd.forward_ad.dual_level():
            self.assertEqual(self.linear(torch.randn(2, 6)).shape, (2, 4))
            with self.assertRaisesRegex(ValueError, "tangent"):
                self.linear(torch.autograd.forward_ad.make_dual(torch.randn(2, 6), torch.randn(2, 6)))

    def test_signs_that_a_view_notes_count(self):
        x = torch.randn(2, 6)
        self.assertTrue(torch.equal(self.linear(torch._neg_view(x)), self.linear(-x)))

    def test_tensors_without_memory_of_their_own_are_refused(self):
        nested = torch.nested.nested_tensor([torch.randn(2, 6), torch.randn(3, 6)])
        with self.assertRaisesRegex(ValueError, "nested"):
            self.linear(nested)
        for layer, x in ((self.linear, torch.randn(4, 2, 6)), (self.conv, torch.randn(4, 2, 3, 5, 5))):
            with self.assertRaisesRegex(nibblenet.Error, "read memory"):
                torch.vmap(layer)(x)

    def test_windows_that_are_none_are_refused(self):
        parts = self.conv._parts()
        for window in ((0, 0), (-1, 0), (1, -1), (1.5, 0), ("1", 0), (1, None), (2**40, 0), (1, 2**40), (True, 0)):
            with self.subTest(window), self.assertRaises(ValueError):
                packed_torch.Conv2d(self.conv.scheme, self.conv.shape, [part if part is None else part.numpy() for part in parts],
                                    *window)

    def test_training_mode_is_refused(self):
        model = nn.Sequential(nn.Linear(6, 4))
        packed_torch.quantize(model)
        with self.assertRaisesRegex(nibblenet.Error, "eval()"):
            model(torch.randn(2, 6))
        self.assertEqual(model.eval()(torch.randn(2, 6)).shape, (2, 4))

    def test_a_trace_would_be_a_constant(self):
        with self.assertRaisesRegex(nibblenet.Error, "traced"):
            torch.jit.trace(self.linear, torch.randn(2, 6))

    def test_the_default_type_and_device_are_no_matter(self):
        x = torch.randn(2, 6)
        expected = self.linear(x)
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        try:
            self.assertTrue(torch.equal(self.linear(x), expected))
            self.assertEqual(packed_torch.Linear.of(nn.Linear(6, 4, dtype=torch.float32, device="cpu"),
                                                    "linear:4").codes.device.type, "cpu")
        finally:
            torch.set_default_dtype(torch.float32)
            torch.set_default_device(None)

    def test_random_inputs_never_end_the_process(self):
        chance = random.Random(3)

        def anything():
            shape = [chance.choice((0, 1, 3, 5, 6)) for _ in range(chance.randrange(6))]
            value = torch.randn(shape).to(chance.choice((torch.float32,) * 4 + (torch.float16, torch.int8)))
            if value.dim() > 1 and chance.random() < 0.4:
                value = chance.choice((value.transpose(0, 1), value[..., ::2], value.expand(2, *shape), value[1:]))
            return chance.choice((value, value, value, None, "x", value.requires_grad_(value.is_floating_point())))

        for _ in range(2000):
            with chance.choice((torch.no_grad(), torch.enable_grad(), torch.inference_mode())):
                try:
                    chance.choice((self.linear, self.conv))(anything())
                except (ValueError, TypeError, nibblenet.Error):
                    pass


class Models(WithTorch):
    def test_tensors_give_what_arrays_give(self):
        model = nibblenet.pack(state_dict())
        x = images(2)
        expected = model(x.numpy())
        for given in (x, x.to(memory_format=torch.channels_last), torch.cat([x, x])[2:], torch._neg_view(-x),
                      nn.Parameter(x, requires_grad=False), x.flip(3).flip(3), torch.stack([x, x], -1)[..., 1]):
            self.assertTrue(np.array_equal(model(given), expected))
        self.assertTrue(np.array_equal(model(x.bfloat16()), model(x.bfloat16().float().numpy())))
        for wrong, reason in ((x.clone().requires_grad_(), "detach"), (x.half(), "float16"), (x.double(), "float64"),
                              (x.to("meta"), "meta"), (x.to_sparse(), "strided"), (x.to(torch.complex64).conj(), "conj"),
                              (torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "QInt"), (x[0], "4 dimensions")):
            with self.subTest(reason), self.assertRaisesRegex(ValueError, reason) as caught:
                model(wrong)
            self.assertNotIn("\n", str(caught.exception))

    def test_state_dicts_of_tensors_are_those_of_arrays(self):
        arrays = state_dict()
        tensors = {name: torch.from_numpy(values) for name, values in arrays.items()}
        expected = nibblenet.pack(arrays).dequantize()
        for given in (tensors, {name: nn.Parameter(part) for name, part in tensors.items()},
                      {name: torch._neg_view(-part) for name, part in tensors.items()},
                      {name: torch.stack([part, part], -1)[..., 1] for name, part in tensors.items()}):
            for name, values in nibblenet.pack(given).dequantize().items():
                self.assertTrue(np.array_equal(values, expected[name]), name)
        weight = nn.Parameter(tensors["features.0.weight"])
        self.assertEqual(nibblenet.check(weight).rows, nibblenet.check(arrays["features.0.weight"]).rows)


class Replacing(WithTorch):
    def test_logits_are_those_of_the_packed_model(self):
        for options in SCHEMES:
            packed = nibblenet.pack(state_dict(), **options)
            replaced, quantized = alexnet(), alexnet()
            done = packed_torch.replace(replaced, packed)
            self.assertEqual((list(done.replaced), done.stayed, done.unused), (list(LAYERS), {}, []))
            self.assertEqual(packed_torch.quantize(quantized, **options).replaced, done.replaced)
            for count, size in ((1, 64), (3, 64), (9, 64), (20, 64), (2, 95)):
                expected = packed(prepared(count, size))
                x = images(count, size)
                for model in (replaced, quantized):
                    for layout in (x, x.to(memory_format=torch.channels_last)):
                        self.assertTrue(np.array_equal(outputs(model, layout), expected), (options, count, size))

    def test_codes_and_bytes_are_those_of_the_packed_model(self):
        for options in SCHEMES:
            packed = nibblenet.pack(state_dict(), **options)
            replaced, quantized = alexnet(), alexnet()
            done = packed_torch.replace(replaced, packed)
            packed_torch.quantize(quantized, **options)
            ours, theirs = replaced.state_dict(), quantized.state_dict()
            self.assertEqual(list(ours), list(theirs))
            for name, part in ours.items():
                self.assertEqual(part.dtype, torch.uint8)
                self.assertTrue(torch.equal(part, theirs[name]), name)
            values = packed.dequantize()
            for row in packed.size.layers:
                layer = replaced.get_submodule(row["name"])
                self.assertEqual((layer.scheme, layer.resident), (row["scheme"], row["resident"]["total"]))
                self.assertTrue(np.array_equal(layer.dequantize().numpy(), values[f"{row['name']}.weight"]))
                self.assertTrue(np.array_equal(layer.bias.numpy(), values[f"{row['name']}.bias"]))
            self.assertEqual(done.after, packed.size.resident)
            self.assertEqual(done.before, sum(part.nbytes for part in state_dict().values()))

    def test_rotated_layers_read_their_inputs_as_the_packed_model_does(self):
        parameters = state_dict()
        random = np.random.default_rng(7)  # 16 channels of 36 pixels, which classifier.1 can have rotated
        parameters["features.10.weight"] = random.uniform(-0.3, 0.3, (16, 12, 3, 3)).astype(np.float32)
        parameters["features.10.bias"] = np.zeros(16, np.float32)
        parameters["classifier.1.weight"] = random.uniform(-0.1, 0.1, (32, 16 * 36)).astype(np.float32)
        for options, rotated in (({"bits": 3, "rotate": True}, "linear:3:channel:rotated:36"),
                                 ({"layers": {"*": "trellis:3:channel:rotated"}}, "trellis:3:channel:rotated:36")):
            packed, model = nibblenet.pack(parameters, **options), network(parameters).eval()
            self.assertEqual(packed_torch.replace(model, packed).replaced["classifier.1"], rotated)
            quantized = network(parameters).eval()
            self.assertEqual(packed_torch.quantize(quantized, **options).replaced["classifier.1"], rotated[:-3])
            same = network(parameters).eval()
            for name in LAYERS:
                same.get_submodule(name).weight.data = quantized.get_submodule(name).dequantize()
            for count in (1, 3, 20):
                expected = packed(prepared(count))
                self.assertTrue(np.array_equal(outputs(model, images(count)), expected), (options, count))
                np.testing.assert_allclose(outputs(quantized, images(count)), outputs(same, images(count)), rtol=1e-3,
                                           atol=1e-4)

    def test_the_model_that_ships_gives_its_layers(self):
        packed = nibblenet.load(Path(__file__).parents[2] / "weights" / "alexnet-cifar10.safetensors")
        model = network(packed.dequantize()).to("meta").eval()
        done = packed_torch.replace(model, packed)
        self.assertEqual((len(done.replaced), done.after), (8, packed.size.resident))
        size = packed.info["image_size"]
        self.assertTrue(np.array_equal(outputs(model, images(1, size)), packed(prepared(1, size))))

    def test_layers_go_by_names_behind_prefixes(self):
        packed = nibblenet.pack(state_dict())
        expected = packed(prepared(2))
        for wrap in (nn.Sequential, nn.DataParallel, lambda model: nn.Sequential(nn.Identity(), nn.Sequential(model)),
                     lambda model: nn.ModuleDict({"backbone": model})):
            model = wrap(alexnet()).eval()
            self.assertEqual(len(packed_torch.replace(model, packed).replaced), 8)
            called = model["backbone"] if isinstance(model, nn.ModuleDict) else model
            self.assertTrue(np.array_equal(outputs(called, images(2)), expected))
        model = alexnet()
        model.features = nn.DataParallel(model.features)  # as PyTorch's ImageNet example does
        self.assertEqual(len(packed_torch.replace(model, packed).replaced), 8)
        self.assertTrue(np.array_equal(outputs(model, images(2)), expected))

    def test_folded_batch_norms_go_into_the_network_without(self):
        def vgg16(norms):
            layers, channels = [], 3
            for width in (4, 4, 0, 4, 4, 0, 4, 4, 4, 0, 4, 4, 4, 0, 4, 4, 4, 0):  # 0: pooling
                if width == 0:
                    layers.append(nn.MaxPool2d(2))
                    continue
                layers.append(nn.Conv2d(channels, width, 3, padding=1))
                layers += [nn.BatchNorm2d(width), nn.ReLU()] if norms else [nn.ReLU()]
                channels = width
            model = nn.Sequential()
            model.features, model.pool, model.flatten = nn.Sequential(*layers), nn.AdaptiveAvgPool2d(7), nn.Flatten()
            model.classifier = nn.Sequential(nn.Linear(4 * 49, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 8), nn.ReLU(),
                                             nn.Dropout(), nn.Linear(8, 10))
            return model.eval()

        normed, plain = vgg16(True), vgg16(False)
        packed = nibblenet.pack(normed.state_dict())
        with self.assertRaisesRegex(ValueError, "features.1 is a batch norm"):
            packed_torch.replace(normed, packed)
        self.assertEqual(len(packed_torch.replace(plain, packed).replaced), 16)
        self.assertTrue(np.array_equal(outputs(plain, images(2)), packed(prepared(2))))
        self.assertEqual(len(packed_torch.quantize(normed).replaced), 16)
        self.assertIsInstance(normed.features[1], nn.BatchNorm2d)

    def test_a_file_and_the_meta_device_will_do(self):
        packed = nibblenet.pack(state_dict())
        with tempfile.TemporaryDirectory() as folder:
            packed.save(Path(folder) / "model")
            model = alexnet().to("meta")
            packed_torch.replace(model, Path(folder) / "model")
        self.assertTrue(np.array_equal(outputs(model, images(2)), packed(prepared(2))))

    def test_a_closed_model_leaves_its_layers(self):
        with nibblenet.pack(state_dict()) as packed:
            model, expected = alexnet(), packed(prepared(1))
            packed_torch.replace(model, packed)
        self.assertTrue(np.array_equal(outputs(model, images(1)), expected))

    def test_layers_that_do_not_fit_stay_and_say_why(self):
        packed, model = nibblenet.pack(state_dict()), alexnet()
        model.features[0].stride = (2, 2)
        model.features[3] = nn.Conv2d(8, 12, 3)
        model.features[6].register_forward_hook(lambda *_: None)
        model.features[8] = nn.Conv2d(16, 12, 3, padding=1, bias=False)
        model.features[10] = model.features[10].half()
        model.classifier[1] = nn.Identity()
        model.extra = nn.Embedding(3, 3)
        before = list(model.modules())
        done = packed_torch.replace(model, packed)
        self.assertEqual(list(done.replaced), ["classifier.4", "classifier.6"])
        self.assertEqual(done.unused, ["classifier.1"])
        for name, reason in {"features.0": "stride 2", "features.3": "[12, 8, 3, 3]", "features.6": "hooks",
                             "features.8": "no bias", "features.10": "float16",
                             "extra": "no layer of this name"}.items():
            self.assertIn(reason, done.stayed.pop(name))
            self.assertIn(model.get_submodule(name), before)
        self.assertEqual(done.stayed, {})
        for text in (str(done), done._repr_html_()):
            self.assertIn("2 layers packed, 5,544 B ", text)
            self.assertIn("classifier.4", text)

    def test_what_cannot_be_replaced_raises_and_changes_nothing(self):
        packed = nibblenet.pack(state_dict())
        pair, normed, named = nn.ModuleList([alexnet(), alexnet()]), alexnet(), alexnet()
        normed.features[1] = nn.BatchNorm2d(8)
        for model, source, reason in ((pair, packed, "several networks"), (normed, packed, "batch norm"),
                                      (nn.Sequential(nn.Linear(2, 2)), packed, "no layer .* 0 the packed model has no"),
                                      (nn.Linear(2, 2), packed, "Linear.of"), (named.state_dict(), packed, "Module"),
                                      (named, nibblenet.Model.of(state_dict()), "PackedModel"),
                                      (named, None, "PackedModel"), (named, state_dict(), "PackedModel")):
            with self.subTest(reason), self.assertRaisesRegex(ValueError, reason):
                packed_torch.replace(model, source)
        for model in (pair, normed, named):
            self.assertFalse(any(isinstance(each, packed_torch.PackedLayer) for each in model.modules()))
        packed.close()
        with self.assertRaisesRegex(nibblenet.Error, "closed"):
            packed_torch.replace(named, packed)


class Quantizing(WithTorch):
    def test_any_module_is_packed(self):
        class Shared(nn.Module):
            def __init__(self):
                super().__init__()
                self.first = nn.Linear(5, 5)
                self.again = nn.ModuleList([self.first, nn.Conv1d(2, 2, 1)])
                self.odd = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.BatchNorm2d(4), nn.Embedding(4, 4))
                self.scale = nn.Parameter(torch.ones(3))
                self.none = None

        model = Shared().eval()
        done = packed_torch.quantize(model, bits=3)
        self.assertEqual(done.replaced, {"first": "linear:3:channel:zero-point"})
        self.assertIs(model.first, model.again[0])
        self.assertEqual(sorted(done.stayed), ["again.1", "odd.0", "odd.2"])
        self.assertIn("only torch.nn.Linear and Conv2d", done.stayed["odd.2"])

    def test_layers_whose_parents_read_their_weights_stay(self):
        for batch_first in (True, False):
            model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first), nn.Linear(8, 8)).eval()
            done = packed_torch.quantize(model)
            self.assertEqual(list(done.replaced), ["1"])
            self.assertIn("TransformerEncoderLayer", done.stayed["0.linear1"])
            self.assertEqual(outputs(model, torch.randn(2, 3, 8)).shape, (2, 3, 8))

    def test_patterns_choose_schemes(self):
        model = alexnet()
        done = packed_torch.quantize(model, 5, layers={"features.*": "kmeans:2", "classifier.6": "linear:8:channel"})
        self.assertEqual(done.replaced["features.10"], "kmeans:2:channel")
        self.assertEqual((done.replaced["classifier.4"], done.replaced["classifier.6"]),
                         ("linear:5:channel", "linear:8:channel"))
        self.assertEqual(packed_torch.quantize(alexnet(), 1.5, "trellis").replaced["classifier.4"],
                         "linear:8:channel")  # as pack does where a trellis would be padding
        wide = nn.Sequential(nn.Linear(8, 64))
        self.assertEqual(packed_torch.quantize(wide, 1.5, "trellis").replaced, {"0": "trellis:1.5:channel"})
        again = packed_torch.quantize(nn.Sequential(model, nn.Linear(10, 2)))  # what is packed stays so
        self.assertEqual((list(again.replaced), again.stayed), (["1"], {}))

    def test_errors_change_nothing(self):
        model = alexnet()
        model.classifier[6].weight.data[0, 0] = torch.inf
        with self.assertRaisesRegex(nibblenet.Error, "classifier.6.weight"):
            packed_torch.quantize(model)
        model.classifier[6].weight.data[0, 0] = 0
        model.classifier[6].bias.data[0] = torch.nan
        with self.assertRaisesRegex(nibblenet.Error, "classifier.6: the bias"):
            packed_torch.quantize(model)

        def stop(*_):
            raise LookupError("enough")

        with self.assertRaisesRegex(LookupError, "enough"):
            packed_torch.quantize(model, progress=stop)
        for options in ({"bits": 9}, {"bits": 1.5}, {"bits": "x"}, {"method": "nf5"}, {"granularity": "block:0"}, {"layers": ["x"]},
                        {"layers": {"none": "linear:4"}}, {"layers": {"*": "linear:99"}}, {"method": "--help"}):
            with self.subTest(str(options)), self.assertRaises(ValueError):
                packed_torch.quantize(model, **options)
        for module in (nn.Linear(2, 2), nn.Conv2d(2, 2, 2), nn.ReLU(), nn.Sequential(nn.Conv1d(2, 2, 2)), None, "x"):
            with self.subTest(str(module)), self.assertRaises(ValueError):
                packed_torch.quantize(module)
        self.assertFalse(any(isinstance(each, packed_torch.PackedLayer) for each in model.modules()))

    def test_progress_is_heard(self):
        heard = []
        packed_torch.quantize(alexnet(), progress=lambda *report: heard.append(report))
        self.assertEqual(heard, [("packing", "layers", done, 8) for done in range(8)])


class States(WithTorch):
    LAYERS = {"features.6": "kmeans:3", "classifier.4": "stable-embedding:4:sorted:9",
              "classifier.1": "linear:3:block:16:f16:zero-point", "features.8": "trellis:3",
              "features.3": "trellis:0.75:channel:f16:rotated"}

    def setUp(self):
        self.model = alexnet()
        packed_torch.quantize(self.model, layers=self.LAYERS)
        self.x = images(2)
        self.expected = outputs(self.model, self.x)

    def expect_same(self, model):
        self.assertTrue(np.array_equal(outputs(model, self.x), self.expected))

    def other(self):
        """The same form with other values."""
        model = network(state_dict(seed=5)).eval()
        packed_torch.quantize(model, layers=self.LAYERS)
        self.assertFalse(np.array_equal(outputs(model, self.x), self.expected))
        return model

    def test_copies_are_apart(self):
        model = copy.deepcopy(self.model)
        self.expect_same(model)
        for part in model.buffers():
            part.zero_()
        self.expect_same(self.model)
        self.assertFalse(np.array_equal(outputs(model, self.x), self.expected))

    def test_a_pickled_model_is_the_model(self):
        layer = self.model.features[0]
        self.assertTrue(torch.equal(pickle.loads(pickle.dumps(layer))(self.x), layer(self.x)))
        for protocol in (2, 5):
            again = pickle.loads(pickle.dumps(self.model.features, protocol))
            self.assertTrue(torch.equal(again(self.x), self.model.features(self.x)))

    def test_state_dicts_go_round(self):
        file = io.BytesIO()
        torch.save(self.model.state_dict(), file)
        for assign in (False, True):
            file.seek(0)
            model = self.other()
            model.load_state_dict(torch.load(file, weights_only=True), assign=assign)
            self.expect_same(model)

    def test_conversions_change_no_codes(self):
        state = {name: part.clone() for name, part in self.model.state_dict().items()}
        for convert in (nn.Module.half, nn.Module.double, nn.Module.bfloat16, lambda model: model.to(torch.float16),
                        nn.Module.share_memory, lambda model: model.to(memory_format=torch.channels_last),
                        lambda model: model.train().eval().requires_grad_(), nn.Module.cpu):
            model = convert(self.model)
            for name, part in model.state_dict().items():
                self.assertEqual(part.dtype, torch.uint8)
                self.assertTrue(torch.equal(part, state[name]), name)
            self.expect_same(model)
        self.assertEqual(list(self.model.parameters()), [])

    def test_states_of_other_layers_are_refused_and_change_nothing(self):
        own = self.model.state_dict()
        nan = torch.full((10 * 4,), 255, dtype=torch.uint8)

        def changed(name, part):
            state = {key: value.clone() for key, value in own.items()}
            if part is None:
                del state[name]
            else:
                state[name] = part
            return state

        for name, part, reason in (
                ("classifier.6.codes", own["classifier.6.codes"].float(), "classifier.6: codes: expected uint8"),
                ("classifier.6.codes", None, "classifier.6: the state has no codes"),
                ("classifier.6.codes", own["classifier.6.codes"][:-1], "classifier.6: codes: expected shape"),
                ("classifier.6.scales", nan, "classifier.6: .*NaN"),
                ("classifier.6.bias_bytes", nan, "classifier.6: .*NaN"),
                ("classifier.4.block_ids", torch.full_like(own["classifier.4.block_ids"], 255),
                 "classifier.4: .*block id"),
                ("classifier.1.zero_points", torch.full_like(own["classifier.1.zero_points"], 8), "zero point 8"),
                ("features.6.codebook", own["features.6.codebook"].flip(0), "features.6: .*codebook"),
                ("features.8.codes", own["features.8.codes"][:-16], "features.8: codes: expected shape"),
                ("features.8.codebook", nan, "features.8: the state has unexpected codebook"),
                ("features.3.scales", torch.full_like(own["features.3.scales"], 255), "features.3: .*NaN"),
                ("classifier.6._extra_state", own["classifier.4._extra_state"], "it is of stable-embedding"),
                ("classifier.6._extra_state", None, "Missing key"), ("features.0.codes", "x", "features.0: codes"),
                ("features.0._extra_state", "x", "features.0: .*a tensor of bytes"),
                ("features.0._extra_state", torch.zeros(3), "features.0: .*a tensor of bytes"),
                ("features.0.codes", own["features.0.codes"].numpy(), "features.0: codes: expected a tensor, got ndarray"),
                ("features.0.codebook", nan, "features.0: the state has unexpected codebook"),
                ("more.codes", nan, "Unexpected key")):
            with self.subTest(name + reason), self.assertRaisesRegex(RuntimeError, reason):
                self.model.load_state_dict(changed(name, part))
            self.expect_same(self.model)
        part = {"classifier.6.codes": torch.zeros_like(own["classifier.6.codes"])}
        with self.assertRaisesRegex(RuntimeError, "classifier.6: the state has no scales"):
            self.model.load_state_dict(part, strict=False)
        self.expect_same(self.model)
        others = {name: value for name, value in self.other().state_dict().items() if name.startswith("classifier.6")}
        self.model.load_state_dict(others, strict=False)
        self.assertTrue(torch.equal(self.model.classifier[6].codes, others["classifier.6.codes"]))

    def test_bytes_elsewhere_or_of_other_types_are_named(self):
        layer = copy.deepcopy(self.model.classifier[6])
        x = torch.randn(2, 32)
        with self.assertRaisesRegex(ValueError, "codes is on meta"):
            copy.deepcopy(layer).to("meta")(x)
        for wrong, reason in ((layer.codes.float(), "uint8"), (layer.codes.T, "dense"),
                              (layer.codes[:-1], "expected 160"), (None, "expected 160")):
            other = copy.deepcopy(layer)
            other.codes = wrong
            for call in (lambda: other(x), other.dequantize):
                with self.assertRaisesRegex(ValueError, reason):
                    call()

    def test_bytes_written_behind_our_back_are_safe(self):
        for fill in (0, 255, 127):
            for part in self.model.buffers():
                part.fill_(fill)
            outputs(self.model, self.x)


class Processes(WithTorch):
    def test_threads_share_a_model(self):
        model = alexnet()
        packed_torch.quantize(model)
        inputs = [images(2, seed=seed) for seed in range(4)]
        expected = [outputs(model, x) for x in inputs]
        self.assertEqual(wrong_in_threads(lambda x: outputs(model, x), inputs, expected), [])

    def test_control_c_stops_the_search_for_strings(self):
        done = run("""
            import signal, threading, time
            signal.signal(signal.SIGINT, signal.default_int_handler)
            model = nn.Sequential(nn.Linear(8192, 8192))
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
            start = time.monotonic()
            try:
                packed_torch.quantize(model, 2, "trellis")
            except KeyboardInterrupt:
                limit = 100 if "NIBBLENET_SANITIZED" in os.environ else 10  # a sanitizer takes its time
                print("stopped", time.monotonic() - start < limit, type(model[0]).__name__)
        """)
        self.assertEqual(done.stdout, "stopped True Linear\n", done.stderr)

    def test_a_forked_child_is_told(self):
        done = run("""
            model = alexnet()
            packed_torch.quantize(model)
            expected = outputs(model, images(1))
            if os.fork() == 0:
                try:
                    outputs(model, images(1))
                except nibblenet.Error as error:
                    print("spawn" in str(error), flush=True)
                os._exit(0)
            os.wait()
            print(np.array_equal(outputs(model, images(1)), expected))
        """)
        self.assertEqual(done.stdout, "True\nTrue\n", done.stderr)

    def test_spawned_processes_compute(self):
        model = nn.Sequential(nn.Linear(6, 4))
        packed_torch.quantize(model.eval())
        x = torch.randn(2, 6)
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            self.assertTrue(np.array_equal(pool.submit(outputs, model, x).result(), outputs(model, x)))

    @unittest.skipIf("NIBBLENET_SANITIZED" in os.environ, "a sanitizer's memory is not ours")
    def test_the_memory_of_the_process_falls_by_the_ledger(self):
        done = run("""
            def resident():
                with open("/proc/self/statm") as file:
                    return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

            model = nn.Sequential(nn.Linear(4096, 6144), nn.ReLU(), nn.Linear(6144, 4096)).eval()
            small = copy.deepcopy(model[:1])
            small[0] = nn.Linear(64, 64)
            packed_torch.quantize(small)  # starts the threads
            with torch.no_grad():
                small.eval()(torch.ones(16, 64)), model(torch.ones(16, 4096))
                before = resident()
                done = packed_torch.quantize(model, layers={"*": "linear:4:channel"})
                model(torch.ones(16, 4096))
            print(done.before - done.after, before - resident())
        """)
        ledger, measured = map(int, done.stdout.split())
        self.assertGreater(ledger, 176_000_000)
        self.assertGreater(measured, ledger - 8_000_000, done.stdout)

    def test_nothing_leaks(self):
        done = run("""
            for _ in range(2):
                model = alexnet()
                packed_torch.replace(model, nibblenet.pack(state_dict()))
                outputs(model, images(1)), model.features[0].dequantize(), model.state_dict()
                for wrong in (None, images(1)[0, 0]):
                    try:
                        model.features[0](wrong)
                    except ValueError:
                        pass
        """)
        self.assertEqual((done.returncode, done.stderr), (0, ""))  # nanobind reports leaks there


if __name__ == "__main__":
    unittest.main()
