"""One engine of compare_cpu.py in a process of its own: quantizes, times or classifies, and writes one JSON file.

usage: cpu_engines.py TASK.json RESULT.json

TASK holds "engine", "action" and what setting() of compare_cpu.py says. An engine's function takes the task and a batch
size and returns three things: what turns float32 images [N, 3, S, S] into the engine's input, what runs it (its result
is float32 logits in NumPy), and facts about what was chosen. Making these is start-up, and is timed by nobody.
"""

import json
import os
import statistics
import sys
import tarfile
import time

import numpy as np
from PIL import Image

CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck".split()
MEAN, DEVIATION = (np.array(values, np.float32) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
SIDE = 32
RECORD = 1 + 3 * SIDE * SIDE
CLASSIFIED_AT_ONCE = 50


# Images: decoded once, by one decoder, and stored as CIFAR-10's binary version, which all sides
# read.

def files_of(path):
    """(name, function that reads it) of each file in a folder or a .tar or .tar.gz."""
    if os.path.isdir(path):
        for folder, _, names in os.walk(path):
            for name in names:
                file = os.path.join(folder, name)
                yield os.path.relpath(file, path), lambda file=file: open(file, "rb")
        return
    with tarfile.open(path) as archive:
        for member in archive:
            if member.isfile():
                yield member.name, lambda member=member: archive.extractfile(member)


def first_of_each(labels, count, classes):
    """Indices of the first count/classes images of every class, in file order, as `tools/eval --limit` takes them."""
    room = {label: count // classes for label in range(classes)}
    chosen = []
    for index, label in enumerate(labels):
        if room[label] > 0:
            room[label] -= 1
            chosen.append(index)
    return chosen


def records_of(path, split, count):
    """Records of CIFAR-10's binary version: `count` images of a split, equally many of each class, and the names."""
    batches, pictures, classes = {}, {}, CIFAR10
    for name, open_file in files_of(path):
        parts = name.replace(os.sep, "/").split("/")
        stem, extension = os.path.splitext(parts[-1])
        if extension == ".bin" and stem.startswith("test_batch" if split == "test" else "data_batch_"):
            batches[stem] = open_file().read()
        elif extension == ".txt" and stem == "batches.meta":
            classes = [line.decode() for line in open_file().read().split()]
        elif len(parts) >= 3 and parts[-3] == split and extension.lower() in (".jpg", ".jpeg", ".png", ".bmp"):
            image = Image.open(open_file()).convert("RGB")
            if image.size != (SIDE, SIDE):
                sys.exit(f"{name} is {image.size[0]} x {image.size[1]}, and not {SIDE} x {SIDE}")
            pictures[parts[-2], parts[-1]] = np.asarray(image).transpose(2, 0, 1).tobytes()
    if batches:
        records = np.frombuffer(b"".join(batches[name] for name in sorted(batches)), np.uint8).reshape(-1, RECORD)
    elif pictures:
        found = sorted({name for name, _ in pictures})
        classes = CIFAR10 if set(found) <= set(CIFAR10) else found
        order = sorted(pictures, key=lambda key: (classes.index(key[0]), key[1]))
        records = np.stack([np.frombuffer(bytes([classes.index(key[0])]) + pictures[key], np.uint8) for key in order])
    else:
        sys.exit(f"{path} holds no {split} images: expected {split}/<class>/* or CIFAR-10's binary version")
    return records[first_of_each(records[:, 0], count or len(records), len(classes))], classes


def write_images(task):
    test, classes = records_of(task["data"], "test", task["images"])
    train, _ = records_of(task["data"], "train", task["calibration_images"])
    os.makedirs(task["image_folder"], exist_ok=True)
    for name, records in (("test_batch.bin", test), ("data_batch_1.bin", train)):
        records.tofile(os.path.join(task["image_folder"], name))
    with open(os.path.join(task["image_folder"], "batches.meta.txt"), "w", encoding="utf-8") as file:
        file.write("\n".join(classes) + "\n")
    return {"images": len(test), "calibration_images": len(train)}


def read_records(task, name):
    return np.fromfile(os.path.join(task["image_folder"], name), np.uint8).reshape(-1, RECORD)


def prepared(records, size):
    """Enlarged by PIL, cropped to the middle and normalised: float32 [N, 3, size, size]."""
    resized = SIDE if size == SIDE else round(size * 256 / 224)
    begin = (resized - size) // 2
    images = np.empty((len(records), 3, size, size), np.float32)
    for image, record in zip(images, records):
        pixels = record[1:].reshape(3, SIDE, SIDE).transpose(1, 2, 0)
        large = Image.fromarray(pixels).resize((resized, resized), Image.BILINEAR)
        crop = np.asarray(large.crop((begin, begin, begin + size, begin + size)), np.float32)
        image[:] = ((crop / 255 - MEAN) / DEVIATION).transpose(2, 0, 1)
    return images


# Engines.

def pytorch(task, _):
    import torch
    from alexnet_torch import alexnet, read_safetensors
    torch.set_num_threads(task["threads"])
    torch.set_grad_enabled(False)
    dtype = getattr(torch, task["precision"])
    model = alexnet(read_safetensors(task["model"])).to(dtype).to(memory_format=torch.channels_last)

    def feed(images):
        return torch.from_numpy(images).to(dtype).to(memory_format=torch.channels_last)
    return feed, lambda images: model(images).float().numpy(), {
        "version": torch.__version__, "runs_in": torch.backends.cpu.get_cpu_capability()}


def onnxruntime(task, batch):
    import onnxruntime as ort
    options = ort.SessionOptions()
    options.intra_op_num_threads = task["threads"]
    options.inter_op_num_threads = 1
    network = ort.InferenceSession(task["onnx"], options, providers=["CPUExecutionProvider"])
    name = network.get_inputs()[0].name
    unknown = network.get_inputs()[0].shape[0]
    if isinstance(unknown, str):  # a fixed batch size is what it optimises best
        options.add_free_dimension_override_by_name(unknown, batch)
        network = ort.InferenceSession(task["onnx"], options, providers=["CPUExecutionProvider"])
    return (lambda images: images), lambda images: network.run(None, {name: images})[0], {"version": ort.__version__}


def quantized_path(task):
    return os.path.join(task["folder"], f"openvino-{task['quantization']}.xml")


def openvino(task, batch):
    import openvino as ov
    core = ov.Core()
    quantization = task.get("quantization")
    model = core.read_model(quantized_path(task) if quantization else task["onnx"])
    model.reshape([batch, 3, task["image_size"], task["image_size"]])
    compiled = core.compile_model(model, "CPU", {
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[task["precision"]],
        "INFERENCE_NUM_THREADS": task["threads"], "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"})
    request = compiled.create_infer_request()

    def run(images):
        return request.infer([images], share_inputs=True)[0]
    kernels = {}
    for node in compiled.get_runtime_model().get_ops():
        facts = {key: str(value.value if hasattr(value, "value") else value) for key, value in node.get_rt_info().items()}
        if facts.get("layerType") in ("Convolution", "FullyConnected"):
            kernels[node.get_friendly_name()] = f"{facts.get('primitiveType')} {facts.get('runtimePrecision')}"
    return (lambda images: images), run, {"version": ov.__version__.split("-")[0],
                                          "runs_in": ", ".join(sorted(set(kernels.values()))), "kernels": kernels}


def quantize_openvino(task):
    import nncf
    import openvino as ov
    model = ov.Core().read_model(task["onnx"])
    if task["quantization"] == "int4":
        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT4_SYM, ratio=1.0, all_layers=True)
    else:
        images = prepared(read_records(task, "data_batch_1.bin"), task["image_size"])
        name = model.inputs[0].get_any_name()
        calibration = nncf.Dataset(images, lambda image: {name: image[np.newaxis]})
        model = nncf.quantize(model, calibration, subset_size=len(images))
    ov.save_model(model, quantized_path(task), compress_to_fp16=False)
    return {"version": nncf.__version__, "bytes": os.path.getsize(quantized_path(task).replace(".xml", ".bin"))}


ENGINES = {"pytorch": pytorch, "onnxruntime": onnxruntime, "openvino": openvino}


# What is asked of them.

def repeat(run, seconds, often, at_least):
    """Milliseconds of each run, for as long as tools/bench samples (tools/timing/sampling.cpp, Budget)."""
    samples, begin = [], time.perf_counter()
    while True:
        start = time.perf_counter()
        run()
        end = time.perf_counter()
        samples.append(1e3 * (end - start))
        spent = end - begin
        if len(samples) >= at_least and spent >= seconds and (len(samples) >= often or spent >= 10 * seconds):
            return samples


def measure(task):
    feed, run, facts = ENGINES[task["engine"]](task, task["batch"])
    images = prepared(read_records(task, "test_batch.bin")[:task["batch"]], task["image_size"])
    images = np.resize(images, (task["batch"], *images.shape[1:]))  # repeats where the data set is smaller than a batch
    images = feed(images)
    repeat(lambda: run(images), min(0.5, task["seconds"]), 50, 2)
    samples = repeat(lambda: run(images), task["seconds"], 30, 3)
    return {"median_ms": statistics.median(samples), "samples": len(samples), **facts}


def classify(task):
    feed, run, facts = ENGINES[task["engine"]](task, CLASSIFIED_AT_ONCE)
    records = read_records(task, "test_batch.bin")
    predictions = []
    for first in range(0, len(records), CLASSIFIED_AT_ONCE):
        some = records[first:first + CLASSIFIED_AT_ONCE]
        images = prepared(some, task["image_size"])
        images = np.resize(images, (CLASSIFIED_AT_ONCE, *images.shape[1:]))
        predictions.append(run(feed(images)).argmax(1)[:len(some)].copy())
    return {"predictions": np.concatenate(predictions).tolist(), "labels": records[:, 0].tolist(), **facts}


def read_logits(task):
    """Predictions from what `tools/eval --logits` wrote."""
    with open(task["logits"], "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        data = file.read()

    def array(name, dtype):
        begin, end = header[name]["data_offsets"]
        return np.frombuffer(data[begin:end], dtype).reshape(header[name]["shape"])
    return {"predictions": array("logits", np.float32).argmax(1).tolist(), "labels": array("labels", np.int64).tolist()}


ACTIONS = {"images": write_images, "quantize": quantize_openvino, "time": measure, "classify": classify,
           "read logits": read_logits}


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        task = json.load(file)
    result = ACTIONS[task["action"]](task)
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main()
