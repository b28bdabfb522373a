"""The same network's forward pass by PyTorch, timed as tools/bench times ours: warm, results copied to the host.

usage: pytorch_bench.py OUT.json
"""

import json
import statistics
import sys
import time

import torch
from torch import nn


def alexnet():
    def conv(c, k, size, stride, padding):
        return [nn.Conv2d(c, k, size, stride, padding), nn.ReLU()]

    return nn.Sequential(
        *conv(3, 64, 11, 4, 2), nn.MaxPool2d(3, 2), *conv(64, 192, 5, 1, 2), nn.MaxPool2d(3, 2),
        *conv(192, 384, 3, 1, 1), *conv(384, 256, 3, 1, 1), *conv(256, 256, 3, 1, 1), nn.MaxPool2d(3, 2),
        nn.AdaptiveAvgPool2d(6), nn.Flatten(), nn.Linear(9216, 4096), nn.ReLU(), nn.Linear(4096, 1024), nn.ReLU(),
        nn.Linear(1024, 10)).eval()


def time_forward(model, images, seconds=1.0):
    with torch.inference_mode():
        for _ in range(10):
            model(images).cpu()
        samples = []
        while sum(samples) < seconds or len(samples) < 3:
            start = time.perf_counter()
            model(images).cpu()
            samples.append(time.perf_counter() - start)
    return 1000 * statistics.median(samples)


def main():
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    results = []
    for name, dtype in (("float16", torch.float16), ("float32", torch.float32)):
        model = alexnet().cuda().to(dtype).to(memory_format=torch.channels_last)
        for batch in (1, 16, 128, 1024):
            images = torch.randn(batch, 3, 224, 224, device="cuda", dtype=dtype).to(memory_format=torch.channels_last)
            milliseconds = time_forward(model, images)
            print(f"{name} batch {batch}: {milliseconds:.3f} ms")
            results.append({"precision": name, "batch": batch, "latency_ms": milliseconds})
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        json.dump({"torch": torch.__version__, "cudnn": torch.backends.cudnn.version(), "results": results}, file)


main()
