"""Models on a GPU. Most tests run kernels on the CPU; those of real streams and memory need a GPU."""

import tempfile
import unittest
import unittest.mock
from pathlib import Path

import numpy as np

import nibblenet
from gpu_arrays import Array, OnHost, Stream, WithDoubles, capsule, double, filled, plain, torch
from support import pictures, prepared, state_dict, write_safetensors

CLASSES = 10


def images_of(kind, count, seed=2):
    """Images as the core takes them, and as Model.__call__ does."""
    if kind == "uint8":
        images = pictures(count, seed=seed)
        return images, images
    images = prepared(count, seed=seed)
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1)), images


class Files(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        floats, cls.path = Path(folder.name) / "float.safetensors", Path(folder.name) / "packed.safetensors"
        write_safetensors(floats, state_dict(), image_size="64")
        layers = {"classifier.4": "trellis:2", "features.6": "nf4:4:block:16:f16"}
        nibblenet.pack(floats, bits=4, layers=layers).save(cls.path)

    def load(self, **options):
        return nibblenet.load(self.path, "cuda", **options)


class Core(Files, OnHost):
    def logits(self, model, images, batch=128, stream=0):
        y = filled((len(images), CLASSES))
        model._core.logits_on_gpu(capsule(y), capsule(images), batch, stream)
        return y

    def test_logits_are_those_of_images_from_the_host(self):
        for precision in ("float16", "float32"):
            model = self.load(precision=precision)
            for kind in ("float32", "uint8"):
                for count, batch in ((0, 128), (1, 128), (5, 2), (3, 3), (2, 1)):
                    ready, images = images_of(kind, count)
                    np.testing.assert_array_equal(self.logits(model, ready, batch), model(images, batch=batch))
        np.testing.assert_allclose(model(images), nibblenet.load(self.path)(images), rtol=1e-4, atol=1e-4)

    def test_images_of_many_sizes(self):
        model = self.load()
        for height, width in ((1, 1), (5, 7), (300, 2), (64, 64), (5, 7)):
            images = np.random.default_rng(height).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
            np.testing.assert_array_equal(self.logits(model, images), model(images))

    def test_the_same_memory_again_is_replayed_with_what_it_holds_then(self):
        model = self.load()
        for kind in ("float32", "uint8"):
            memory = images_of(kind, 2)[0].copy()
            for seed in (2, 3, 4, 5):
                ready, images = images_of(kind, 2, seed)
                memory[...] = ready
                np.testing.assert_array_equal(self.logits(model, memory), model(images))

    def test_work_is_ordered_by_the_callers_stream(self):
        model = self.load()
        for kind in ("float32", "uint8"):
            memory, got = images_of(kind, 2, seed=9)[0].copy(), filled((2, CLASSES))
            self.logits(model, memory.copy())  # the first call of its kind waits: it allocates
            for seed in (2, 3, 4):  # plain, recorded, replayed
                ready, images = images_of(kind, 2, seed)
                stream, y = Stream(), filled((2, CLASSES))
                stream.copy_later(memory, ready)
                model._core.logits_on_gpu(capsule(y), capsule(memory), 128, stream.cuda_stream)
                self.assertTrue(np.isnan(y).all(), "the images were not there yet")
                stream.copy_later(got, y)
                stream.copy_later(memory, np.zeros_like(memory))  # who frees the images may write there
                self.assertGreater(stream.waiting(), 0)
                stream.synchronize()
                np.testing.assert_array_equal(got, model(images))
                self.assertFalse(memory.any())

    def test_the_default_stream_is_a_stream(self):
        model = self.load()
        ready, images = images_of("float32", 1)
        np.testing.assert_array_equal(self.logits(model, ready, stream=0), model(images))

    def test_an_error_leaves_the_order_as_it_was(self):
        model = self.load()
        stream, ready = Stream(), images_of("float32", 1)[0]
        with self.assertRaisesRegex(ValueError, "image-size 8"):
            model._core.logits_on_gpu(capsule(filled((1, CLASSES))), capsule(np.zeros((1, 8, 8, 3), np.float32)), 128,
                                      stream.cuda_stream)
        with self.assertRaisesRegex(ValueError, "batch 0"):
            model._core.logits_on_gpu(capsule(filled((1, CLASSES))), capsule(ready), 0, stream.cuda_stream)
        self.assertEqual(stream.waiting(), 0)

    def test_other_devices_and_shapes_are_refused(self):
        model, ready = self.load(), images_of("float32", 2)[0]
        y = filled((2, CLASSES))
        with self.assertRaisesRegex(ValueError, r"^images are on cuda:1, the model is on cuda:0: pass images.to\('cuda:0'\)$"):
            model._core.logits_on_gpu(capsule(y, 1), capsule(ready, 1), 128, 0)
        with self.assertRaisesRegex(ValueError, "^images are on cuda:0, their logits on cuda:1$"):
            model._core.logits_on_gpu(capsule(y, 1), capsule(ready), 128, 0)
        with self.assertRaisesRegex(ValueError, r"^images are on cuda:0, the model is on the CPU: pass images.cpu\(\)"):
            nibblenet.load(self.path)._core.logits_on_gpu(capsule(y), capsule(ready), 128, 0)
        for shape in ((2, 9), (1, CLASSES), (3, CLASSES)):
            with self.assertRaisesRegex(ValueError, "logits"):
                model._core.logits_on_gpu(capsule(filled(shape)), capsule(ready), 128, 0)
        for wrong in (ready[:, ::2], ready.transpose(0, 3, 1, 2), ready.astype(np.float64), ready.astype(np.float16), ready[0]):
            with self.assertRaises((TypeError, ValueError)):
                model._core.logits_on_gpu(capsule(y), capsule(wrong), 128, 0)
        for kind in (1, 3, 13):  # of the host, page-locked, managed
            with self.assertRaises(TypeError):
                model._core.logits_on_gpu(capsule(y), capsule(ready, kind=kind), 128, 0)
        for shape in ((1, 4, 6, 3), (1, 4, 4, 2), (1, 0, 0, 3)):
            for dtype in (np.uint8, np.float32):
                if dtype == np.uint8 and shape[3] == 3 and shape[1] > 0:
                    continue
                with self.assertRaises(ValueError):
                    model._core.logits_on_gpu(capsule(filled((1, CLASSES))), capsule(np.zeros(shape, dtype)), 128, 0)
        self.assertTrue(np.isnan(y).all())

    def test_a_closed_model_says_so(self):
        model = self.load()
        model.close()
        with self.assertRaisesRegex(nibblenet.Error, "closed"):
            self.logits(model, images_of("float32", 1)[0])
        with self.assertRaisesRegex(nibblenet.Error, "closed"):
            model(Array(prepared(1)))

    def test_arrays_of_others_are_refused_in_one_line(self):
        with self.assertRaisesRegex(ValueError, r"^images: arrays of a GPU are taken .*torch.from_dlpack\(images\)$"):
            self.load()(Array(prepared(1)))
        with self.assertRaisesRegex(ValueError, r"images.cpu\(\)"):
            nibblenet.load(self.path)(Array(prepared(1)))
        with self.assertRaisesRegex(ValueError, "cuda:3.*cuda:0"):
            self.load()(Array(prepared(1), 3))


class Tensors(Files, WithDoubles):
    def test_a_tensor_of_the_gpu_gives_one_there(self):
        model = self.load()
        for kind in ("float32", "uint8"):
            for count, batch in ((1, 128), (5, 2), (0, 128)):
                images = torch.from_numpy(images_of(kind, count)[1])
                variants = [images]
                if kind == "float32":
                    variants += [images.to(memory_format=torch.channels_last), images.flip(3)[..., range(63, -1, -1)],
                                 torch._neg_view(-images)]
                else:
                    variants += [images.transpose(1, 2).contiguous().transpose(1, 2)]
                for x in variants:
                    y = model(double(x) if x.is_contiguous() else x.as_subclass(type(double(x))), batch=batch)
                    self.assertEqual((str(y.device), y.dtype), ("cuda:0", torch.float32))
                    np.testing.assert_array_equal(plain(y), model(images.numpy(), batch=batch))

    def test_it_is_in_the_order_of_the_current_stream(self):
        model, images = self.load(), prepared(2)
        x = double(torch.zeros(2, 3, 64, 64).to(memory_format=torch.channels_last))
        inside = plain(x).transpose(0, 2, 3, 1)
        self.stream.copy_later(inside, np.ascontiguousarray(images.transpose(0, 2, 3, 1)))
        y = model(x)
        self.stream.synchronize()
        np.testing.assert_array_equal(plain(y), model(images))

    def test_channels_last_and_uint8_are_read_in_place(self):
        model, seen = self.load(), []
        with unittest.mock.patch.object(nibblenet._gpu, "shared",
                                        lambda x: seen.append(x.data_ptr()) or capsule(plain(x))):
            for x in (double(torch.from_numpy(prepared(2)).to(memory_format=torch.channels_last)),
                      double(torch.from_numpy(pictures(2)))):
                model(x)
                self.assertEqual(seen[-1], x.data_ptr())

    def test_what_is_no_batch_of_images_is_refused(self):
        model, good = self.load(), torch.from_numpy(prepared(2))
        wrong = [good.double(), good.half(), good[0], good[:, :2], good[..., :-1], good.to(torch.int8)]
        for x in wrong:
            with self.subTest(f"{x.dtype} {tuple(x.shape)}"), self.assertRaises(ValueError) as caught:
                model(x.as_subclass(type(double(good))))
            self.assertNotIn("\n", str(caught.exception))
        with self.assertRaisesRegex(ValueError, r"^images requires grad; pass images.detach\(\)$"):
            model(double(good).requires_grad_())
        for batch in (0, True, "2", 1.5):
            with self.assertRaisesRegex(ValueError, "batch"):
                model(double(good), batch=batch)
        with self.assertRaisesRegex(ValueError, r"^images are on cuda:0, the model is on the CPU: pass images.cpu\(\)"):
            nibblenet.load(self.path)(double(good))

    def test_tensors_of_the_host_give_arrays(self):
        model, images = self.load(), prepared(2)
        y = model(torch.from_numpy(images))
        self.assertIsInstance(y, np.ndarray)
        np.testing.assert_array_equal(y, model(images))


class WithGpu(Files):
    """With a real GPU: what doubles stand in for above."""

    @classmethod
    def setUpClass(cls):
        if torch is None or not torch.cuda.is_available():
            raise unittest.SkipTest("PyTorch sees no GPU")
        super().setUpClass()
        try:
            nibblenet.load(cls.path, "cuda").precision
        except ValueError as error:
            raise unittest.SkipTest(str(error)) from None

    def test_logits_are_those_of_images_from_the_host(self):
        model = self.load()
        for kind in ("float32", "uint8"):
            images = torch.from_numpy(images_of(kind, 5)[1])
            for layout in (torch.contiguous_format, torch.channels_last):
                x = images.cuda() if kind == "uint8" else images.cuda().contiguous(memory_format=layout)
                for _ in range(3):
                    y = model(x, batch=2)
                    self.assertEqual((y.device, y.dtype), (x.device, torch.float32))
                    np.testing.assert_array_equal(y.cpu().numpy(), model(images.numpy(), batch=2))

    def test_it_is_in_the_order_of_the_current_stream(self):
        model, images = self.load(), torch.from_numpy(prepared(8)).to(memory_format=torch.channels_last)
        expected = model(images.numpy())
        for stream in (torch.cuda.default_stream(), torch.cuda.Stream()):
            with torch.cuda.stream(stream):
                for _ in range(20):
                    x = torch.zeros_like(images, device="cuda")
                    torch.cuda._sleep(10_000_000)
                    x.copy_(images.cuda(non_blocking=True))
                    y = model(x)
                    x.zero_()
                    del x
                    np.testing.assert_array_equal(y.cpu().numpy(), expected)

    def test_other_devices_are_refused(self):
        with self.assertRaisesRegex(ValueError, "the model is on the CPU"):
            nibblenet.load(self.path)(torch.from_numpy(prepared(1)).cuda())
        if torch.cuda.device_count() > 1:
            with self.assertRaisesRegex(ValueError, "cuda:1.*cuda:0"):
                self.load()(torch.from_numpy(prepared(1)).to("cuda:1"))


if __name__ == "__main__":
    unittest.main()
