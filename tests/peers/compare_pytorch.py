#!/usr/bin/env python3
"""The same network by PyTorch, in the form of `tools/bench --compare --json`: eager, in a CUDA graph, channels last in
float16 and bfloat16, compiled, and with the linear layers at 4 bits by bitsandbytes; TensorRT where there is a trtexec;
both tasks, T224 from prepared images and T32 from 32 x 32 bytes; caches warm and cold. What cannot run here is left out,
and said.

A pass ends with the logits in the host's memory, as ours does. TF32 is off.
"""

import argparse
import json
import os
import statistics
import sys
import time
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as functional

import tensorrt_side
from alexnet_torch import alexnet, read_safetensors

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class FromBytes(torch.nn.Module):
    """T32: enlarges [N, 32, 32, 3] bytes, crops the middle, normalises, and runs the network."""

    def __init__(self, model, image_size, dtype):
        super().__init__()
        self.model, self.size, self.dtype = model, image_size, dtype
        self.resized = round(image_size * 256 / 224)
        self.register_buffer("scale", (1 / (255 * torch.tensor(DEVIATION))).to(dtype).view(1, 3, 1, 1))
        self.register_buffer("shift", (torch.tensor(MEAN) / torch.tensor(DEVIATION)).to(dtype).view(1, 3, 1, 1))

    def forward(self, images):
        x = images.permute(0, 3, 1, 2).to(self.dtype)
        x = functional.interpolate(x, size=self.resized, mode="bilinear", align_corners=False)
        begin = (self.resized - self.size) // 2
        x = x[:, :, begin:begin + self.size, begin:begin + self.size]
        return self.model(x * self.scale - self.shift)


class Graphed:
    """A model's call on one batch, recorded as a CUDA graph. Its time by the GPU's clock leaves launch and copy out."""

    def __init__(self, model, images):
        self.images = images
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                model(images)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.output = model(images)

    def __call__(self, _):
        self.graph.replay()
        return self.output

    def device_ms(self, count, before):
        """Of one replay, the mean of some in a row, between two events; before() queues other work in front of them."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before()
        begin.record()
        for _ in range(count):
            self.graph.replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / count


class Side(NamedTuple):
    dtype: torch.dtype
    channels_last: bool
    how: str  # eager, graph, or a mode of torch.compile
    four_bits: bool = False  # the linear layers, by bitsandbytes


def sides_for(device):
    sides = {"eager float32": Side(torch.float32, False, "eager"),
             "eager float32 channels last": Side(torch.float32, True, "eager"),
             "compiled float32": Side(torch.float32, True, "default")}
    if device == "cuda":
        for name, dtype in (("float16", torch.float16), ("bfloat16", torch.bfloat16)):
            sides[f"eager {name} channels last"] = Side(dtype, True, "eager")
            sides[f"graph {name} channels last"] = Side(dtype, True, "graph")
            sides[f"compiled {name}"] = Side(dtype, True, "default")
            sides[f"compiled {name} max-autotune"] = Side(dtype, True, "max-autotune")
        sides["graph float32"] = Side(torch.float32, True, "graph")
        sides["graph float16, bitsandbytes nf4"] = Side(torch.float16, True, "graph", True)
    sides["eager float16, bitsandbytes nf4"] = Side(torch.float16, True, "eager", True)
    return sides


def with_four_bits(model, dtype):
    """The linear layers as bitsandbytes' Linear4bit; they are quantized on their way to the device."""
    from bitsandbytes.nn import Linear4bit, Params4bit
    for index, layer in enumerate(model.classifier):
        if isinstance(layer, torch.nn.Linear):
            packed = Linear4bit(layer.in_features, layer.out_features, compute_dtype=dtype, quant_type="nf4")
            packed.weight = Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
            packed.bias = layer.bias
            model.classifier[index] = packed
    return model


def bytes_of(model):
    """Of the weights as they lie in memory, with the steps of those that bitsandbytes packed."""
    total = 0
    for parameter in model.parameters():
        total += parameter.numel() * parameter.element_size()
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            total += state.absmax.numel() * state.absmax.element_size()
    return total


def operations_of(run, device):
    """Kernels of one pass, as PyTorch's profiler counts them on a GPU."""
    if device != "cuda":
        return None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events()) or None


def median_and_spread(samples):
    ordered = sorted(samples)
    at = lambda fraction: ordered[int(fraction * (len(ordered) - 1) + 0.5)]
    return {"median_ms": statistics.median(ordered), "p10_ms": at(0.1), "p90_ms": at(0.9), "samples": len(ordered),
            "samples_ms": samples}


class Timer:
    """Warm: one pass after the other. Cold: more memory than the caches hold is written before each, untimed."""

    def __init__(self, device, seconds):
        self.device, self.seconds = device, seconds
        self.sweep = torch.ones((320 << 20) // 4, device=device)

    def synchronize(self):
        if self.device == "cuda":
            torch.cuda.synchronize()

    def once(self, run):
        start = time.perf_counter()
        run().float().cpu()
        return 1e3 * (time.perf_counter() - start)

    def samples(self, sample):
        samples, begin = [], time.perf_counter()
        while len(samples) < 3 or time.perf_counter() - begin < self.seconds:
            samples.append(sample())
        return samples

    def warm(self, run):
        self.samples(lambda: self.once(run))
        return median_and_spread(self.samples(lambda: self.once(run)))

    def cold(self, run):
        def once_cold():
            self.sweep.relu_()
            self.synchronize()
            return self.once(run)
        return median_and_spread(self.samples(once_cold))

    def device(self, graph):
        """By the GPU's clock, warm and cold."""
        in_a_row = max(1, round(2 / graph.device_ms(3, lambda: None)))
        return {"warm": median_and_spread(self.samples(lambda: graph.device_ms(in_a_row, lambda: None))),
                "cold": median_and_spread(self.samples(lambda: graph.device_ms(1, self.sweep.relu_)))}


def prepare(side, tensors, task, batch, options):
    """A function that runs one pass of a side and returns its logits, the bytes of the side's weights, and the CUDA graph
    if the side is one."""
    dtype, how = side.dtype, side.how
    layout = torch.channels_last if side.channels_last else torch.contiguous_format
    model = alexnet(tensors).to(dtype).to(memory_format=layout)
    model = (with_four_bits(model, dtype) if side.four_bits else model).to(options.device)
    weight_bytes = bytes_of(model)
    generator = torch.Generator().manual_seed(1)
    if task == "T224":
        images = torch.randn(batch, 3, options.image_size, options.image_size, generator=generator)
        images = images.to(options.device).to(dtype).to(memory_format=layout)
    else:
        images = torch.randint(0, 256, (batch, 32, 32, 3), generator=generator, dtype=torch.uint8).to(options.device)
        model = FromBytes(model, options.image_size, dtype).to(options.device)
    if how == "graph":
        model = Graphed(model, images)
    elif how != "eager":
        model = torch.compile(model, mode=None if how == "default" else how)
    return lambda: model(images), weight_bytes, model if how == "graph" else None


def check(run, reference):
    """Distance of a side's logits to those of the first one, which was eager float32."""
    logits = run().float().cpu().numpy()
    if reference is None:
        return logits, 0.0, 1.0
    error = float(np.linalg.norm(logits - reference) / np.linalg.norm(reference))
    return reference, error, float((logits.argmax(1) == reference.argmax(1)).mean())


def measure(sides, tensors, options, on_task):
    """Sides in turn within each round. Returns the list of sides, in bench's form; calls on_task with it after each task."""
    timer = Timer(options.device, options.seconds)
    rows = {name: {"side": f"PyTorch {name}", "engine": f"PyTorch {torch.__version__}",
                   "weights": str(side.dtype)[6:] + (", linear layers nf4" if side.four_bits else ""),
                   "activations": str(side.dtype)[6:], "first_folded": False, "weight_bytes": 0, "relative_error": 0.0,
                   "agreement": 1.0, "results": [], "layers": []} for name, side in sides.items()}
    for batch in options.batches:
        for task in ("T224", "T32"):
            rounds, device, reference, operations = {}, {}, None, {}
            for index in range(options.rounds):
                for name, side in list(sides.items()):
                    try:
                        run, rows[name]["weight_bytes"], graph = prepare(side, tensors, task, batch, options)
                        if index == 0:
                            operations[name] = operations_of(run, options.device)
                            reference, error, agreement = check(run, reference)
                            rows[name]["relative_error"] = max(rows[name]["relative_error"], error)
                            rows[name]["agreement"] = min(rows[name]["agreement"], agreement)
                        for caches, timed in (("warm", timer.warm(run)), ("cold", timer.cold(run))):
                            rounds.setdefault((name, caches), []).append(timed)
                        for caches, timed in (timer.device(graph) if graph else {}).items():
                            device.setdefault((name, caches), []).append(timed)
                    except Exception as problem:  # whatever this machine's PyTorch lacks: a compiler, memory
                        reason = (str(problem) or type(problem).__name__).splitlines()[0]
                        rows[name]["not_measured"] = f"{task}, batch {batch}: {reason}"
                        print(f"not measured: {name}, {rows[name]['not_measured']}", file=sys.stderr)
                        del sides[name]
            for (name, caches), latencies in rounds.items():
                medians = [latency["median_ms"] for latency in latencies]
                by_device = device.get((name, caches), [])
                rows[name]["results"].append({"task": task, "batch": batch, "caches": caches,
                                              "median_ms": statistics.median(medians),
                                              "spread": max(medians) / min(medians) - 1, "rounds": latencies,
                                              "device_ms": statistics.median(latency["median_ms"] for latency in by_device)
                                              if by_device else None, "device_rounds": by_device,
                                              "operations": operations.get(name)})
                of_device = rows[name]["results"][-1]["device_ms"]
                print(f"{name:<36} {task:>5} {batch:>6} {caches:>5} {statistics.median(medians):>10.4f} ms"
                      + (f", device {of_device:.4f} ms" if of_device else ""), flush=True)
            on_task(list(rows.values()))
    return list(rows.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="float model, .safetensors with F32 or F16")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batches", default="1,2,4,8,16,32,64,128,256,512,1024",
                        type=lambda text: [int(batch) for batch in text.split(",")])
    parser.add_argument("--seconds", type=float, default=0.5, help="each measurement samples for so long")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, help="on the CPU")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--sides", help="only these of the sides above, separated by commas")
    parser.add_argument("--json", required=True, help="written after each task of each batch size")
    parser.add_argument("--append", action="store_true", help="measure only the sides that the file at --json lacks, and add them")
    options = parser.parse_args()
    sides = sides_for(options.device)
    if options.sides:
        unknown = [name for name in options.sides.split(",") if name not in sides]
        if unknown:
            parser.error(f"unknown sides {unknown}; there are: {', '.join(sides)}")
        sides = {name: sides[name] for name in options.sides.split(",")}
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    tensors = read_safetensors(options.model)
    known = []
    if options.append and os.path.exists(options.json):
        with open(options.json, encoding="utf-8") as file:
            known = json.load(file)["sides"]
        sides = {name: side for name, side in sides.items() if f"PyTorch {name}" not in {row["side"] for row in known}}
    name = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    report = {"device": options.device, "description": f"PyTorch {torch.__version__}, {name}",
              "image_size": options.image_size, "seconds": options.seconds}

    def write(rows):
        """In one go, so that a file is there whenever this is stopped."""
        with open(options.json + ".new", "w", encoding="utf-8") as file:
            json.dump(report | {"sides": known + rows}, file, indent=1)
        os.replace(options.json + ".new", options.json)

    with torch.inference_mode():
        measured = measure(sides, tensors, options, write)
    if options.device == "cuda" and not options.sides:
        write(measured + tensorrt_side.measure(tensors, options))


if __name__ == "__main__":
    main()
