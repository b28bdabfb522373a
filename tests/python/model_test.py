"""Models: packing, files, inference and evaluation."""

import os
import subprocess
import tempfile
import unittest
import unittest.mock
from pathlib import Path

import numpy as np

import nibblenet
from support import fake_quantized, pictures, prepared, state_dict, write_cifar10, write_safetensors

TOOLS = os.environ.get("NIBBLENET_TOOLS")
# Options of both, of few images: on noise the choices mean nothing, but they have to be the same.
CHOICES = [{"target_bits": 4.5}, {"target_size": 0.021, "compress": True}, {"target_file": 0.02}, {"target_resident": 0.02},
           {"max_loss": 30, "method": "kmeans"}]
SCHEMES = [{}, {"bits": 3}, {"method": "kmeans", "bits": 4}, {"method": "nf4", "granularity": "block:32", "scale": "f16"},
           {"bits": 4, "layers": {"features.*": "linear:8:channel"}}, {"bits": 3, "rotate": True},
           {"layers": {"*": "trellis:1.5"}}]


class InFolder(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)


class Precisions(InFolder):
    def setUp(self):
        super().setUp()
        self.path = self.folder / "packed.safetensors"
        nibblenet.pack(state_dict(), bits=8, method="linear", granularity="channel").save(self.path)

    def test_it_is_float32_unless_another_is_asked_for(self):
        plain, images = nibblenet.load(self.path), prepared(3)
        self.assertEqual((plain.precision["precision"], plain.precision["notes"]), ("float32", []))
        self.assertEqual(nibblenet.load(self.path, precision="auto").precision["precision"], "float32")
        for name in ("int8", "bfloat16"):
            narrow = nibblenet.load(self.path, precision=name)
            difference = np.abs(narrow(images) - plain(images)).max()
            self.assertTrue(0 < difference < 0.1, difference)
            found = narrow.precision
            self.assertEqual((found["precision"], found["divergence"]), (name, None))
            self.assertEqual(set(found["layer_precisions"].values()), {name})
            self.assertIn("not measured", found["notes"][0])
            narrow.save(self.folder / "again.safetensors")
            self.assertEqual((self.folder / "again.safetensors").read_bytes(), self.path.read_bytes())

    def test_what_cannot_be_is_refused(self):
        with self.assertRaisesRegex(ValueError, "int4"):
            nibblenet.load(self.path, precision="int4")
        with self.assertRaisesRegex(ValueError, "float16"):
            nibblenet.load(self.path, precision="float16")(prepared(1))
        floats = nibblenet.Model.of(state_dict(), precision="int8")
        for _ in range(2):
            with self.assertRaisesRegex(ValueError, "features.0 .its weights are not packed"):
                floats(prepared(1))


class Packing(InFolder):
    def test_a_saved_model_is_the_model(self):
        packed = nibblenet.pack(state_dict(), bits=4)
        images = prepared(3)
        logits, before = packed(images), packed.size
        for compress in (False, True):
            path = self.folder / f"{compress}.safetensors"
            packed.save(path, compress=compress)
            loaded = nibblenet.load(path)
            self.assertIsInstance(loaded, nibblenet.PackedModel)
            self.assertTrue(np.array_equal(loaded(images), logits))
            self.assertEqual(loaded.size.file, path.stat().st_size)
            self.assertEqual(packed.size.file, path.stat().st_size)
            self.assertEqual((loaded.size.resident, loaded.size.estimated), (before.resident, before.estimated))
            for name, values in packed.dequantize().items():
                self.assertTrue(np.array_equal(loaded.dequantize()[name], values), name)

    def test_sources_of_all_kinds_give_the_same_bytes(self):
        parameters = state_dict()
        path = self.folder / "float.safetensors"
        write_safetensors(path, parameters)
        for i, options in enumerate(SCHEMES):
            files = []
            for source in (parameters, path, str(path), nibblenet.load(path)):
                files.append(self.folder / f"{i}-{len(files)}.safetensors")
                nibblenet.pack(source, **options).save(files[-1])
            for file in files[1:]:
                self.assertEqual(file.read_bytes(), files[0].read_bytes(), options)

    @unittest.skipUnless(TOOLS, "NIBBLENET_TOOLS does not name the folder of the tools")
    def test_the_tool_writes_the_same_bytes(self):
        path = self.folder / "float.safetensors"
        write_safetensors(path, state_dict())
        for options in SCHEMES:
            self.compare_with_tool(path, options)

    @unittest.skipUnless(TOOLS, "NIBBLENET_TOOLS does not name the folder of the tools")
    def test_the_tool_chooses_the_same_schemes_for_a_target(self):
        path, data = self.folder / "float.safetensors", self.folder / "data"
        write_safetensors(path, state_dict(), image_size="64")
        data.mkdir()
        write_cifar10(data)
        for options in CHOICES:
            packed = self.compare_with_tool(path, {**options, "data": data, "target_images": 10})
            self.assertEqual(len(packed.report["allocation"]["layers"]), 8)
        self.compare_with_tool(path, {"target_bits": 4, "calibrate": data, "calibration_images": 20,
                                      "target_images": 10, "save_calibration": self.folder / "calibration"})
        self.compare_with_tool(path, {"bits": 3, "calibration": self.folder / "calibration"})

    @unittest.skipUnless(TOOLS, "NIBBLENET_TOOLS does not name the folder of the tools")
    def test_the_tool_measures_the_same_of_precisions(self):
        path, data = self.folder / "float.safetensors", self.folder / "data"
        write_safetensors(path, state_dict(), image_size="64")
        data.mkdir()
        write_cifar10(data)
        packed = self.compare_with_tool(path, {"method": "linear", "calibrate": data, "calibration_images": 20})
        metadata = packed.info["metadata"]
        self.assertEqual(len([key for key in metadata if key.startswith("input_range:")]), 8)
        measured = packed.report["precisions"]
        self.assertEqual(metadata["divergence:images"], str(measured["images"]))
        for name, nats in measured["divergence"].items():
            self.assertAlmostEqual(float(metadata[f"divergence:{name}"]), nats, delta=0.005 * nats)

    @unittest.skipUnless(TOOLS, "NIBBLENET_TOOLS does not name the folder of the tools")
    def test_the_tool_takes_the_same_weights_by_key(self):
        path = self.folder / "several.safetensors"
        write_safetensors(path, {f"{part}.{name}": values for part, seed in (("model", 0), ("ema", 1))
                                 for name, values in state_dict(seed).items()})
        for part, seed in (("model", 0), ("ema", 1)):
            self.compare_with_tool(path, {"key": part})
            loaded = nibblenet.load(path, key=part, strict=True).dequantize()
            self.assertTrue(np.array_equal(loaded["features.0.weight"], state_dict(seed)["features.0.weight"]))

    def test_measurements_serve_another_target(self):
        data = self.folder / "data"
        data.mkdir()
        write_cifar10(data)
        options = {"data": data, "target_images": 10, "threads": 1}
        kept = self.folder / "kept.json"
        nibblenet.pack(state_dict(), target_resident=0.05, measurements=kept, **options)
        measured = kept.read_bytes()
        again = nibblenet.pack(state_dict(), target_resident=0.03, measurements=kept, **options)
        self.assertEqual(kept.read_bytes(), measured)
        unaided = nibblenet.pack(state_dict(), target_resident=0.03, **options)
        self.assertEqual(again.report["allocation"], unaided.report["allocation"])

    def compare_with_tool(self, path, options):
        arguments = []
        for name, value in options.items():
            if name == "layers":
                arguments += [f"--layer={pattern}={scheme}" for pattern, scheme in value.items()]
            else:
                option = "--" + name.replace("_", "-")
                arguments.append(option if value is True else f"{option}={value}")
        by_tool, by_us = self.folder / "tool.safetensors", self.folder / "us.safetensors"
        subprocess.run([Path(TOOLS) / "pack", path, "-o", by_tool, *arguments], check=True, capture_output=True)
        packed = nibblenet.pack(path, **options)
        packed.save(by_us)
        self.assertEqual(by_us.read_bytes(), by_tool.read_bytes(), options)
        return packed

    def test_a_target_that_cannot_be_met_is_told(self):
        data = self.folder / "data"
        data.mkdir()
        write_cifar10(data)
        small = {"data": data, "target_images": 10}
        for options in ({"target_bits": 1.5}, {"target_size": 0.001}, {"target_bits": 0}, {"max_loss": -1},
                        {"target_bits": 4, "bits": 4}, {"target_bits": 4, "target_size": 1},
                        {"target_file": 1, "target_size": 1}, {"target_resident": 0.001}):
            with self.subTest(str(options)), self.assertRaises(ValueError):
                nibblenet.pack(state_dict(), **options, **small)

    def test_a_key_is_for_files_of_other_programs(self):
        path = self.folder / "ours.safetensors"
        nibblenet.pack(state_dict()).save(path)
        write_safetensors(self.folder / "float.safetensors", state_dict())
        for call in (lambda: nibblenet.load(path, key="model"), lambda: nibblenet.pack(state_dict(), key="model"),
                     lambda: nibblenet.inspect(path, key="model"), lambda: nibblenet.load(path, key=3)):
            with self.assertRaisesRegex(ValueError, "key"):
                call()
        with self.assertRaisesRegex((ValueError, nibblenet.Error), "nothing"):
            nibblenet.load(self.folder / "float.safetensors", key="nothing")

    def test_a_packed_model_is_not_packed_again(self):
        packed = nibblenet.pack(state_dict(), bits=3)
        path = self.folder / "packed.safetensors"
        packed.save(path)
        for source in (packed, path):
            for call in (nibblenet.pack, lambda source: nibblenet.sweep(source, ["nf4"]),
                         lambda source: nibblenet.simulate(source, "simulated-fp8")):
                with self.assertRaisesRegex(ValueError, "packed already"):
                    call(source)
        floats = packed.floats()
        self.assertFalse(floats.info["packed"])
        images = prepared(2)
        np.testing.assert_allclose(packed(images), floats(images), rtol=1e-4, atol=1e-4)

    def test_a_compressed_file_stays_compressed(self):
        path, again = self.folder / "a.safetensors", self.folder / "b.safetensors"
        nibblenet.pack(state_dict(), bits=4, method="linear", compress=True).save(path)
        nibblenet.load(path).save(again)
        self.assertEqual(again.read_bytes(), path.read_bytes())
        nibblenet.load(path).save(again, compress=False)
        self.assertGreater(again.stat().st_size, path.stat().st_size)

    def test_the_ledger_adds_up(self):
        packed = nibblenet.pack(state_dict(), bits=4, method="linear")
        size = packed.size
        weights = sum(values.size for values in state_dict().values() if values.ndim > 1)
        self.assertEqual(size.weights, weights)
        self.assertEqual(size.file, 0)
        self.assertEqual(size.estimated, sum(row["estimated"]["total"] for row in size.layers))
        self.assertEqual(size.resident, sum(row["resident"]["total"] for row in size.layers))
        self.assertEqual(sum(row["estimated"]["codes"] for row in size.layers), weights / 2)
        self.assertIn("features.10", str(size))
        self.assertEqual(size._repr_html_().count("<tr>"), 1 + 8 + 1)

    def test_the_source_is_not_changed(self):
        parameters = state_dict()
        before = {name: values.copy() for name, values in parameters.items()}
        floats = nibblenet.Model.of(parameters)
        nibblenet.pack(floats)
        self.assertFalse(floats.info["packed"])
        for name, values in before.items():
            self.assertTrue(np.array_equal(parameters[name], values))
            self.assertTrue(np.array_equal(floats.dequantize()[name], values))

    def test_names_behind_prefixes_are_known_and_counters_left_out(self):
        wrapped = {f"module.{name}": values for name, values in state_dict().items()}
        wrapped["module.steps"] = np.array(3)
        self.assertEqual(nibblenet.Model.of(wrapped).info["network"], "alexnet")

    def test_inspect_shows_what_a_file_holds(self):
        path = self.folder / "p.safetensors"
        nibblenet.pack(state_dict(), bits=4, method="linear").save(path)
        found = nibblenet.inspect(path)
        self.assertEqual(found["bytes"], path.stat().st_size)
        schemes = {tensor["name"]: tensor["scheme"] for tensor in found["tensors"]}
        self.assertEqual(schemes["classifier.6.weight"], "linear:4:channel")
        self.assertEqual(schemes["classifier.6.bias"], "float32")


class Inference(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.model = nibblenet.pack(state_dict(), bits=4)

    def test_layouts_of_the_same_images_give_the_same_bits(self):
        images = prepared(5)
        logits = self.model(images)
        self.assertEqual(logits.shape, (5, 10))
        self.assertEqual(logits.dtype, np.float32)
        channels_last = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        unaligned = np.frombuffer(b"x" + images.tobytes(), np.uint8)[1:].view(np.float32).reshape(images.shape)
        twice = np.repeat(images, 2, axis=0)[::2]
        backwards = np.ascontiguousarray(images[:, :, ::-1, ::-1])[:, :, ::-1, ::-1]
        read_only = images.copy()
        read_only.flags.writeable = False
        for other in (channels_last, unaligned, twice, backwards, read_only):
            self.assertTrue(np.array_equal(self.model(other), logits))

    def test_zero_images_give_zero_rows(self):
        self.assertEqual(self.model(np.zeros((0, 3, 64, 64), np.float32)).shape, (0, 10))
        self.assertEqual(self.model(np.zeros((0, 32, 32, 3), np.uint8)).shape, (0, 10))

    def test_batches_and_their_order_do_not_matter(self):
        images = prepared(7)
        logits = self.model(images, batch=7)
        for batch in (1, 2, 7, 128, 3):
            np.testing.assert_allclose(self.model(images, batch=batch), logits, rtol=1e-4, atol=1e-5)
        self.assertTrue(np.array_equal(self.model(images, batch=7), logits))

    def test_packed_weights_compute_like_their_float_values(self):
        floats = nibblenet.Model.of(self.model.dequantize())
        images = prepared(2)
        np.testing.assert_allclose(self.model(images), floats(images), rtol=1e-4, atol=1e-4)

    def test_bytes_are_prepared_as_evaluate_prepares_them(self):
        images, labels = pictures(6), np.arange(6) % 10
        result = nibblenet.evaluate(self.model, (images, labels), batch=6)
        self.assertTrue(np.array_equal(self.model(images, batch=6), result.logits))


class Evaluating(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.floats = nibblenet.Model.of(state_dict())
        cls.images = pictures(12)
        cls.labels = cls.floats(cls.images).argmax(axis=1)

    def test_figures_are_those_of_the_logits(self):
        labels = self.labels.copy()
        labels[:3] = (labels[:3] + 1) % 10
        result = nibblenet.evaluate(self.floats, (self.images, labels))
        self.assertEqual((result.correct, result.images, result.accuracy), (9, 12, 0.75))
        self.assertLess(result.interval[0], 0.75)
        self.assertGreater(result.interval[1], 0.75)
        logits = result.logits.astype(np.float64)
        losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(12), labels]
        self.assertAlmostEqual(result.loss, losses.mean(), places=5)

    def test_a_comparison_is_paired(self):
        one = nibblenet.evaluate(self.floats, (self.images, self.labels))
        flipped = nibblenet.Model.of({name: -values for name, values in state_dict().items()})
        other = nibblenet.evaluate(flipped, (self.images, self.labels))
        paired = one.compare(other)
        self.assertEqual(paired["only_this"], int((~other.right).sum()))
        self.assertEqual(paired["only_other"], 0)
        self.assertAlmostEqual(paired["mcnemar_p"], min(1, 2 * 0.5 ** paired["only_this"]))
        with self.assertRaisesRegex(ValueError, "different images"):
            one.compare(nibblenet.evaluate(flipped, (self.images[:4], self.labels[:4])))

    def test_a_sweep_gives_rows(self):
        rows = nibblenet.sweep(state_dict(), ["linear:8:channel", {"bits": 2, "method": "linear"}],
                               (self.images, self.labels))
        self.assertEqual([row["scheme"] for row in rows], ["float32", "linear:8:channel", "bits=2, method=linear"])
        self.assertEqual(rows[0]["accuracy"], 1.0)
        self.assertGreater(rows[1]["estimated_bytes"], rows[2]["estimated_bytes"])
        self.assertEqual({frozenset(row) for row in rows}, {frozenset(rows[0])})

    def test_simulations_are_those_of_the_notebooks(self):
        rounded = nibblenet.simulate(self.floats, "simulated-linear")
        weights, found = self.floats.dequantize()["classifier.1.weight"], rounded.dequantize()
        scale = np.float32(1) / np.float32(weights.max() - weights.min()) * np.float32(255)
        codes = np.trunc(weights * scale).astype(np.int64).astype(np.int8)
        self.assertTrue(np.array_equal(found["classifier.1.weight"], codes / scale))
        self.assertTrue(np.array_equal(found["classifier.1.bias"], self.floats.dequantize()["classifier.1.bias"]))
        self.assertEqual(rounded.report["claimed_bits"], 8)
        repaired = nibblenet.simulate(self.floats, "simulated-linear", repair=["overflow", "truncation"])
        self.assertEqual(repaired.report["repairs"], ["overflow", "truncation"])
        self.assertGreater(repaired.report["snr_db"], rounded.report["snr_db"])
        tree = nibblenet.simulate(state_dict(), "simulated-dynamic-tree:4").report
        self.assertEqual(sum(tree["exponent_counts"]), sum(each["weights"] for each in tree["layers"]))
        for scheme, repair in (("simulated", None), ("linear:4", None), ("simulated-fp8", "overflow"), (None, None),
                               ("simulated-linear", "none")):
            with self.subTest(scheme), self.assertRaises(ValueError):
                nibblenet.simulate(self.floats, scheme, repair)

    def test_a_sweep_tells_what_simulations_need(self):
        rows = nibblenet.sweep(self.floats, ["simulated-dynamic-tree:4", "dynamic-tree:4:row"],
                               (self.images, self.labels))
        self.assertEqual([row["estimated_bytes"] is None for row in rows], [False, True, False])
        self.assertGreater(rows[1]["needed_bits"], 2)
        self.assertEqual(rows[1]["only_this"], 0)  # the labels are the float model's answers

    def test_images_are_searched_as_the_tools_search_them(self):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_cifar10(folder)
            with unittest.mock.patch.dict(os.environ, {"NIBBLENET_DATA": name}):
                found = nibblenet.evaluate(self.floats, limit=20)
            named = nibblenet.evaluate(self.floats, folder, limit=20)
            self.assertTrue(np.array_equal(found.logits, named.logits))
            self.assertEqual(found.images, 20)
            with self.assertRaises(ValueError):
                nibblenet.evaluate(self.floats, folder, split="valid")
            parts = [nibblenet.evaluate(self.floats, folder, split=split).images
                     for split in ("train", "validation", "fitting")]
            self.assertEqual(parts[0], parts[1] + parts[2])
            self.assertGreater(parts[1], 0)
            folded = nibblenet.evaluate(self.floats, folder, limit=20, fold_first=True)
            np.testing.assert_allclose(folded.logits, named.logits, atol=0.1)
            self.assertFalse(np.array_equal(folded.logits, named.logits))

    def test_what_is_claimed_can_be_checked_and_packed(self):
        rounded = {name: fake_quantized(values, 4) if values.ndim > 1 else values
                   for name, values in state_dict().items()}
        schemes = {row["name"]: row["scheme"] for row in nibblenet.check(rounded).rows}
        packed = nibblenet.pack(rounded, layers=schemes)
        for name, values in packed.dequantize().items():
            np.testing.assert_allclose(values, rounded[name], rtol=3e-7, err_msg=name)


if __name__ == "__main__":
    unittest.main()
