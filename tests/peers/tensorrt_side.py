"""The same network by TensorRT: `trtexec` builds an engine from ONNX and times it, in a CUDA graph, without transfers."""

import json
import os
import shutil
import statistics
import subprocess
import tempfile

import torch

from alexnet_torch import alexnet

# int8 comes without calibration here: its time is that of W8A8, its logits would mean nothing.
PRECISIONS = {"float16": ["--fp16"], "int8": ["--fp16", "--int8"]}


def export(tensors, image_size, batch, path):
    example = torch.zeros(batch, 3, image_size, image_size)
    torch.onnx.export(alexnet(tensors), (example,), path, input_names=["images"], output_names=["logits"], dynamo=False)


def timed(trtexec, model, flags, seconds, folder):
    """Milliseconds of computing, one for each pass. What went wrong is in trtexec's last line."""
    times = os.path.join(folder, "times.json")
    command = [trtexec, f"--onnx={model}", *flags, "--useCudaGraph", "--noDataTransfers", "--useSpinWait",
               "--warmUp=500", f"--duration={max(1, round(seconds))}", f"--exportTimes={times}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError((done.stdout + done.stderr).strip().splitlines()[-1])
    with open(times, encoding="utf-8") as file:
        return [entry["computeMs"] for entry in json.load(file)]


def result_of(milliseconds, batch):
    ordered = sorted(milliseconds)
    median = statistics.median(ordered)
    once = {"median_ms": median, "p10_ms": ordered[len(ordered) // 10], "p90_ms": ordered[len(ordered) * 9 // 10],
            "samples": len(ordered)}
    return {"task": "T224", "batch": batch, "caches": "warm", "median_ms": median, "spread": 0.0, "rounds": [once]}


def measure(tensors, options):
    """One side a precision, T224 with caches warm only; the reason in "not_measured" where there is nothing else."""
    trtexec = shutil.which("trtexec") or shutil.which("/usr/src/tensorrt/bin/trtexec")
    weights = sum(array.size for array in tensors.values())
    rows = []
    for precision, flags in PRECISIONS.items():
        row = {"side": f"TensorRT {precision}", "engine": "TensorRT, trtexec", "weights": precision,
               "activations": precision, "first_folded": False, "relative_error": None, "agreement": None,
               "weight_bytes": weights * (1 if precision == "int8" else 2), "results": [], "layers": []}
        try:
            if trtexec is None:
                raise RuntimeError("there is no trtexec")
            with tempfile.TemporaryDirectory() as folder:
                for batch in options.batches:
                    model = os.path.join(folder, f"{batch}.onnx")
                    export(tensors, options.image_size, batch, model)
                    row["results"].append(result_of(timed(trtexec, model, flags, options.seconds, folder), batch))
        except Exception as problem:  # whatever this machine lacks: the program, an exporter, memory
            row["not_measured"] = str(problem).splitlines()[0]
        rows.append(row)
    return rows
