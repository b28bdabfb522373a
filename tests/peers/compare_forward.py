#!/usr/bin/env python3
"""Forward pass of the same AlexNet, the same weights and the same number of threads, side by side in one run:
PyTorch (as it is, and channels last), ONNX Runtime, and nibblenet (float, and packed).

Engines take turns within each round, in an order that rotates, so that a machine that slows down slows all of them.
Each cell of the table is the median over rounds of each round's median latency.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings

import numpy as np
import onnxruntime
import torch

from alexnet_torch import alexnet, read_safetensors


def onnx_session(model, images, threads, folder):
    """A session for one fixed batch size, which is what ONNX Runtime optimises best."""
    path = os.path.join(folder, f"alexnet-{len(images)}.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the newer exporter needs one more package
        torch.onnx.export(model, (images,), path, input_names=["images"], output_names=["logits"], dynamo=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    os.remove(path)
    return session


def median_latency_ms(run, seconds):
    """Warm median of one engine's calls: at least 3, for about so many seconds."""
    run()
    latencies = []
    deadline = time.perf_counter() + seconds
    while len(latencies) < 3 or time.perf_counter() < deadline:
        begin = time.perf_counter()
        run()
        latencies.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(latencies)


def bench_latency_ms(bench, model, batch, threads, folder):
    report = os.path.join(folder, "bench.json")
    command = [bench, model, "--batch", str(batch), "--threads", str(threads), "--json", report]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: {done.stderr.strip()}")
    with open(report, encoding="utf-8") as file:
        return next(row["latency_ms"] for row in json.load(file)["results"] if row["batch"] == batch)


def engines_for(batch, model, model_channels_last, options, folder):
    """Name -> function that measures one round and returns its median latency in ms."""
    images = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(batch))
    images_channels_last = images.to(memory_format=torch.channels_last)
    images_numpy = images.numpy()
    session = onnx_session(model, images, options.threads, folder)

    expected = model(images).numpy()
    for name, actual in (("PyTorch channels last", model_channels_last(images_channels_last).numpy()),
                         ("ONNX Runtime", session.run(None, {"images": images_numpy})[0])):
        error = np.linalg.norm(actual - expected) / np.linalg.norm(expected)
        if not error < 1e-4:
            sys.exit(f"{name} computes something else than PyTorch: relative difference {error:.1e} at batch {batch}")

    def peer(run):
        return lambda: median_latency_ms(run, options.seconds)

    engines = {
        "PyTorch": peer(lambda: model(images)),
        "PyTorch channels last": peer(lambda: model_channels_last(images_channels_last)),
        "ONNX Runtime": peer(lambda: session.run(None, {"images": images_numpy})),
    }
    for name, path in (("nibblenet float", options.model), ("nibblenet packed", options.packed)):
        if options.bench and path:
            engines[name] = lambda path=path: bench_latency_ms(options.bench, path, batch, options.threads, folder)
    return engines


def measure(engines, rounds):
    """Name -> list of one latency per round. The order rotates from round to round."""
    names = list(engines)
    latencies = {name: [] for name in names}
    for index in range(rounds):
        shift = index % len(names)
        for name in names[shift:] + names[:shift]:
            time.sleep(0.5)  # threads of the engine before spin a while before they sleep
            latencies[name].append(engines[name]())
    return latencies


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="float model, .safetensors with F32 or F16")
    parser.add_argument("--packed", help="the same model packed, for the last column")
    parser.add_argument("--bench", help="build/cpu/tools/bench; without it only the peers are measured")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--batches", default="1,8,128")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="per engine and round (peers)")
    parser.add_argument("--json", help="write the results to this file")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    tensors = read_safetensors(options.model)
    model = alexnet(tensors)
    model_channels_last = alexnet(tensors).to(memory_format=torch.channels_last)

    print(f"PyTorch {torch.__version__}, ONNX Runtime {onnxruntime.__version__}, {options.threads} threads, "
          f"{options.rounds} rounds, {torch.backends.cpu.get_cpu_capability()}")
    results = []
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for batch in map(int, options.batches.split(",")):
            latencies = measure(engines_for(batch, model, model_channels_last, options, folder), options.rounds)
            medians = {name: statistics.median(values) for name, values in latencies.items()}
            print(f"\nbatch {batch:<20} {'median ms':>10} {'min':>9} {'max':>9} {'images/s':>9} {'x PyTorch':>9}")
            for name, latency in medians.items():
                row = {
                    "batch": batch,
                    "engine": name,
                    "latency_ms": latency,
                    "latency_ms_rounds": latencies[name],
                    "images_per_second": batch / latency * 1e3,
                    "speed_over_pytorch": medians["PyTorch"] / latency,
                    "speed_over_onnxruntime": medians["ONNX Runtime"] / latency,
                }
                results.append(row)
                print(f"  {name:<24} {latency:>10.2f} {min(latencies[name]):>9.2f} {max(latencies[name]):>9.2f} "
                      f"{row['images_per_second']:>9.1f} {row['speed_over_pytorch']:>9.2f}", flush=True)

    if options.json:
        report = {"pytorch": torch.__version__, "onnxruntime": onnxruntime.__version__, "threads": options.threads,
                  "rounds": options.rounds, "results": results}
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=2)


if __name__ == "__main__":
    main()
