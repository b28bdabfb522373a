#!/usr/bin/env python3
"""Times a training step of the same network by PyTorch, as users would write it: automatic mixed precision in float16
with its GradScaler, channels last, SGD with momentum, on images that lie on the device already; eager and compiled.

To be set beside `tools/finetune --precision float16`, whose images per second include reading and preparing images.
"""

import argparse
import json
import statistics
import time

import torch

from alexnet_torch import alexnet, read_safetensors


def make_step(model, options, autocast):
    """A function that makes one step of training on fixed random images, enqueued but not waited for."""
    images = torch.randn(options.batch, 3, options.image_size, options.image_size, device=options.device)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (options.batch,), device=options.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4, fused=autocast or None)
    scaler = torch.amp.GradScaler(options.device, enabled=autocast)

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(options.device, dtype=torch.float16, enabled=autocast):
            loss = torch.nn.functional.cross_entropy(model(images), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss

    return step


def seconds_of(step, options):
    """Median seconds of a step, over groups of steps that are waited for at their end."""
    for _ in range(options.warmup):
        step()
    groups = []
    for _ in range(options.groups):
        synchronize(options.device)
        start = time.perf_counter()
        for _ in range(options.steps):
            step()
        synchronize(options.device)
        groups.append((time.perf_counter() - start) / options.steps)
    return statistics.median(groups)


def synchronize(device):
    if device == "cuda":
        torch.cuda.synchronize()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="float model, .safetensors with F32 or F16")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--warmup", type=int, default=10)
    parser.add_argument("--groups", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="in a group")
    parser.add_argument("--json", required=True)
    options = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    rows = []
    autocast = options.device == "cuda"
    for how in ("eager", "compiled"):
        model = alexnet(read_safetensors(options.model)).to(options.device).to(memory_format=torch.channels_last).train()
        try:
            step = make_step(torch.compile(model) if how == "compiled" else model, options, autocast)
            seconds = seconds_of(step, options)
        except Exception as problem:  # whatever this machine's PyTorch lacks: a compiler, memory
            print(f"not measured: {how}: {(str(problem) or type(problem).__name__).splitlines()[0]}")
            continue
        rows.append({"side": f"PyTorch {torch.__version__} {how}{', AMP' if autocast else ''}, channels last",
                     "batch": options.batch, "step_ms": 1e3 * seconds, "images_per_second": options.batch / seconds})
        print(f"{rows[-1]['side']}: {rows[-1]['step_ms']:.3f} ms a step of {options.batch}, "
              f"{rows[-1]['images_per_second']:.0f} images/s", flush=True)
    with open(options.json, "w", encoding="utf-8") as file:
        json.dump({"image_size": options.image_size, "sides": rows}, file, indent=1)


if __name__ == "__main__":
    main()
