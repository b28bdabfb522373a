"""Wrong arguments raise ValueError, OSError, nibblenet.Error or TypeError; none ends the process."""

import copy
import pickle
import random
import tempfile
import unittest
from pathlib import Path

import numpy as np

import nibblenet
from support import pictures, prepared, state_dict

EXPECTED = (ValueError, OSError, nibblenet.Error, TypeError)  # TypeError: Python's own, of signatures


class FakeTensor:
    """What torch's tensors show of themselves, on NumPy's memory."""

    def __init__(self, values, device=1, requires_grad=False):
        self.values, self.device, self.requires_grad = values, device, requires_grad
        self.shape, self.dtype = values.shape, values.dtype

    def __dlpack__(self, **options):
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self):
        return (self.device, 0)


class Arguments(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.model = nibblenet.pack(state_dict(), bits=4)

    def test_the_build_is_named(self):
        self.assertRegex(nibblenet.__version__, r"^\d+\.\d+\.\d+$")
        self.assertRegex(nibblenet.__commit__, "^([0-9a-f]{40}(, with changes)?|unknown)$")

    def test_tensors_go_through_dlpack(self):
        images = prepared(2)
        self.assertTrue(np.array_equal(self.model(FakeTensor(images)), self.model(images)))
        strided = FakeTensor(prepared(4)[::2])
        self.assertTrue(np.array_equal(self.model(strided), self.model(strided.values)))
        with self.assertRaisesRegex(ValueError, "requires grad"):
            self.model(FakeTensor(images, requires_grad=True))
        with self.assertRaisesRegex(ValueError, r"images.cpu\(\)"):
            self.model(FakeTensor(images, device=2))

    def test_images_of_other_types_and_shapes_are_refused(self):
        good = prepared(2)
        for images in (good.astype(np.float64), good.astype(">f4"), good[0], good[:, :2], good[:, :, :, :-1],
                       np.zeros((2, 3, 8, 8), np.float32), pictures(2)[..., :2], pictures(2).astype(np.int8),
                       np.zeros((2, 0, 5, 3), np.uint8), None, "x", [1, 2], object(), np.array([None]),
                       np.zeros((2, 3, 64, 64), [("a", "f4")])):
            with self.subTest(repr(images)[:40]), self.assertRaises(ValueError):
                self.model(images)
        for batch in (0, -1, 1.5, "2", None, True, 2**70):
            with self.subTest(batch), self.assertRaises(ValueError):
                self.model(good, batch=batch)

    def test_state_dicts_that_are_no_network_are_refused(self):
        good = state_dict()
        odd = [{}, {"a": 1.5}, {1: good["features.0.weight"]}, {"features.0.weight": good["features.0.weight"]},
               {**good, "features.0.weight": good["features.0.weight"].astype(np.float64)},
               {**good, "features.0.weight": good["features.0.weight"][:, :2]},
               {**good, "features.0.bias": np.zeros((1, 2, 3, 4, 5), np.float32)},
               {**good, "classifier.6.bias": np.full(10, np.nan, np.float32)},
               {**good, "classifier.6.weight": np.zeros((0, 32), np.float32)},
               {**good, "extra.weight": np.zeros((3, 3), np.float32)}, None, 3, [good], ""]
        for values in odd:
            with self.subTest(repr(values)[:50]), self.assertRaises((ValueError, nibblenet.Error)):
                nibblenet.pack(values)

    def test_options_that_are_none_are_refused_before_the_work(self):
        for options in ({"bits": 9}, {"bits": "x"}, {"bits": True}, {"method": "nf5"}, {"granularity": "block:0"},
                        {"layers": {"none*": "linear:4"}}, {"layers": {"*": "linear:99"}}, {"layers": ["linear"]},
                        {"calibrate": "/nowhere"}, {"rounding": "gptq"}, {"ranges": "wide"}, {"scale": ""},
                        {"method": "--help"}, {"bits": float("nan")}, {"device": "tpu"}, {"bits": object()}):
            with self.subTest(str(options)), self.assertRaises(ValueError):
                nibblenet.pack(state_dict(), **options)

    def test_files_that_are_no_models_are_refused(self):
        with tempfile.TemporaryDirectory() as folder:
            junk = Path(folder) / "junk"
            junk.write_bytes(b"junk" * 100)
            for call in (nibblenet.load, nibblenet.inspect, nibblenet.pack):
                with self.assertRaises(OSError):
                    call(Path(folder) / "missing")
                with self.assertRaises(nibblenet.Error):
                    call(junk)
            with self.assertRaises(ValueError):
                self.model.save(junk)
            self.assertEqual(junk.read_bytes(), b"junk" * 100)
            with self.assertRaises(OSError):
                self.model.save(Path(folder) / "no" / "folder")

    def test_check_refuses_what_is_no_float_tensor(self):
        for values in (np.zeros(3), np.zeros(3, np.int32), np.float32(1), np.zeros((0, 3), np.float32), None,
                       np.zeros(3, ">f4"), {"a": np.zeros(3, np.float32)}):
            with self.subTest(repr(values)[:40]), self.assertRaises(ValueError):
                nibblenet.check(values)
        for value in (np.nan, np.inf):
            with self.assertRaisesRegex(nibblenet.Error, "finite"):
                nibblenet.check(np.array([[1, value]], np.float32))
        for bits in (0, -4, 33, "4", float("nan")):
            with self.subTest(bits), self.assertRaises(ValueError):
                nibblenet.check(np.ones((2, 2), np.float32), claimed_bits=bits)

    def test_labels_are_checked(self):
        for labels in ([0, 1], np.array([0, 10]), np.array([0, -1]), np.array([0.0, 1.0]), np.array([0]),
                       np.array([0, 300])):
            with self.subTest(repr(labels)), self.assertRaises(ValueError):
                nibblenet.evaluate(self.model, (pictures(2), labels))
        with self.assertRaises(ValueError):
            nibblenet.evaluate(self.model, (pictures(2)[:0], np.array([], np.int64)))

    def test_a_closed_model_says_so(self):
        with nibblenet.pack(state_dict()) as model:
            pass
        for call in (lambda: model.size, lambda: model.info, lambda: model(prepared(1)), model.dequantize,
                     lambda: model.save("x"), lambda: nibblenet.pack(model), lambda: model(pictures(1)),
                     lambda: nibblenet.evaluate(model, (pictures(1), np.array([0])))):
            with self.assertRaisesRegex(nibblenet.Error, "closed"):
                call()
        model.close()

    def test_models_are_not_pickled(self):
        for call in (pickle.dumps, copy.deepcopy):
            with self.assertRaisesRegex(TypeError, "save one and load it"):
                call(self.model)
        images = prepared(1)
        self.assertTrue(np.array_equal(copy.copy(self.model)(images), self.model(images)))
        size = self.model.size
        self.assertEqual(pickle.loads(pickle.dumps(size)), size)

    def test_a_module_is_told_what_to_pass(self):
        class Module:
            def state_dict(self):
                return {}

        for call in (nibblenet.pack, nibblenet.evaluate, nibblenet.Model.of):
            with self.assertRaisesRegex(ValueError, r"got Module; pass its .state_dict\(\)"):
                call(Module())

    def test_random_arguments_never_end_the_process(self):
        chance = random.Random(7)
        numbers = np.random.default_rng(7)

        def any_array():
            shape = tuple(chance.choice((0, 1, 2, 3, 5, 64)) for _ in range(chance.randrange(0, 6)))
            if np.prod(shape, dtype=np.int64) > 300_000:
                shape = shape[:2]
            kind = chance.choice(("u1", "f4", "f4", ">f4", "f2", "f8", "i8", "?", "c8"))
            values = numbers.integers(0, 4, shape).astype(kind)
            if values.ndim and chance.random() < 0.3:
                values = values[..., :: chance.choice((-1, 2))]
            if values.dtype.kind == "f" and values.size and chance.random() < 0.2:
                values[...] = chance.choice((np.nan, np.inf, -np.inf, 6e4))
            return values

        def anything():
            return chance.choice((None, True, -1, 0, 4, 2**65, 1.5, float("nan"), "", "x", "linear:4:row", b"y", (), [],
                                  {}, object(), {"a": any_array()}, (any_array(), any_array()), any_array(),
                                  state_dict(), self.model, FakeTensor(any_array()), np))

        options = ("bits", "method", "granularity", "scale", "layers", "calibrate", "rounding", "ranges", "passes",
                   "zero_point", "progress", "device")
        calls = (
            lambda: self.model(any_array(), batch=chance.choice((1, 3, 128, anything()))),
            lambda: self.model(anything()),
            lambda: nibblenet.check(any_array(), claimed_bits=chance.choice((None, 4, anything()))),
            lambda: nibblenet.check(anything()),
            lambda: nibblenet.pack(anything(), **{chance.choice(options): anything()}),
            lambda: nibblenet.evaluate(anything(), anything(), batch=anything()),
            lambda: nibblenet.evaluate(self.model, (any_array(), any_array()), image_size=chance.choice((0, 64))),
            lambda: nibblenet.load(anything(), anything()),
            lambda: nibblenet.inspect(anything()),
            lambda: nibblenet._core.check(anything(), anything(), None),
            lambda: self.model._core.logits(any_array(), 2),
            lambda: self.model._core.evaluate_arrays(any_array(), any_array(), 1, 0, False, None),
        )
        for _ in range(1500):
            try:
                chance.choice(calls)()
            except EXPECTED:
                pass
        self.assertEqual(self.model(prepared(1)).shape, (1, 10))  # it works as before


if __name__ == "__main__":
    unittest.main()
