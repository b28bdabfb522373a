#!/usr/bin/env python3
"""The forward pass on this machine's CPU beside PyTorch, ONNX Runtime and OpenVINO, in float32 and in the processor's
narrow types: one table of times and accuracies, as Markdown.

    python3 tests/peers/compare_cpu.py --install --model weights/model.safetensors --data data --json build/cpu.json

Every measurement is a process of its own. Sides take turns within each round, in an order that rotates, so that a
machine that slows down slows all of them. Times are medians over rounds of each round's median, with the smallest and
the largest round. They exclude start-up, quantization and the preparation of images. A side that cannot be installed,
or fails, is a row that says so; the others go on. This script needs nothing but Python; --environment has the peers.
"""

import argparse
import datetime
import json
import math
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGES = ("numpy", "pillow", "onnxruntime", "openvino", "nncf", "torch")
SIDES = {
    "nibblenet float32": {"engine": "nibblenet", "precision": "float32"},
    "nibblenet 4 bits float32": {"engine": "nibblenet", "precision": "float32", "packed": True},
    "nibblenet 4 bits bfloat16": {"engine": "nibblenet", "precision": "bfloat16", "packed": True},
    "nibblenet 4 bits int8": {"engine": "nibblenet", "precision": "int8", "packed": True},
    "ONNX Runtime float32": {"engine": "onnxruntime", "precision": "float32"},
    "OpenVINO float32": {"engine": "openvino", "precision": "float32"},
    "OpenVINO bfloat16": {"engine": "openvino", "precision": "bfloat16"},
    "OpenVINO bfloat16, int4 weights": {"engine": "openvino", "precision": "bfloat16", "quantization": "int4"},
    "OpenVINO int8": {"engine": "openvino", "precision": "float32", "quantization": "int8"},
    "OpenVINO int8, bfloat16": {"engine": "openvino", "precision": "bfloat16", "quantization": "int8"},
    "PyTorch float32": {"engine": "pytorch", "precision": "float32"},
    "PyTorch bfloat16": {"engine": "pytorch", "precision": "bfloat16"},
}
REFERENCE = "nibblenet float32"
# What limits an engine to an instruction set. ONNX Runtime has no such setting.
LIMITS = {"avx2": {"NIBBLENET_MAX_ISA": "avx2", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2",
                   "MKL_ENABLE_INSTRUCTIONS": "AVX2"}}
LONGEST = 1800  # seconds of one process


class Failed(Exception):
    """One line that says why a side was not measured."""


def call(command, environment):
    """Runs a command to its end. Its failure is its last line."""
    try:
        done = subprocess.run([str(word) for word in command], env=environment, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False, timeout=LONGEST)
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise Failed(str(problem)) from problem
    if done.returncode != 0:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise Failed(lines[-1].strip() if lines else f"exit status {done.returncode}")
    return done.stdout


def install(folder):
    """A virtual environment with the peers. Packages come one by one, so that one that fails leaves the others."""
    python = folder / "bin/python"
    if not python.exists():
        call([sys.executable, "-m", "venv", folder], None)
    missing = {}
    for package in PACKAGES:
        print(f"installing {package}", file=sys.stderr, flush=True)
        try:
            call([python, "-m", "pip", "install", "--quiet", package], None)
        except Failed as problem:
            missing[package] = str(problem)
            print(f"not installed: {package}: {problem}", file=sys.stderr)
    return missing


class Run:
    """Options, the folder of what is made on the way, and the calls of both kinds of processes."""

    def __init__(self, options, folder):
        self.options, self.folder = options, pathlib.Path(folder)
        self.environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), **LIMITS.get(options.isa, {})}
        self.python = pathlib.Path(options.environment) / "bin/python"
        self.images = self.folder / "images"
        self.onnx = self.folder / "model.onnx"
        self.packed = options.packed
        self.image_size = 0
        self.versions = {}

    def tool(self, name, *arguments):
        """The JSON of one of our tools."""
        report = self.folder / f"{name}.json"
        call([pathlib.Path(self.options.tools) / name, *arguments, "--json", report, "--force"], self.environment)
        return json.loads(report.read_text(encoding="utf-8"))

    def worker(self, action, side=None, **more):
        """What cpu_engines.py answers in a process of its own."""
        task = {"action": action, "model": self.options.model, "onnx": str(self.onnx), "folder": str(self.folder),
                "image_folder": str(self.images), "image_size": self.image_size, "threads": self.options.threads,
                "seconds": self.options.seconds, **(side or {}), **more}
        (self.folder / "task.json").write_text(json.dumps(task), encoding="utf-8")
        call([self.python, ROOT / "tests/peers/cpu_engines.py", self.folder / "task.json", self.folder / "result.json"],
             self.environment)
        return json.loads((self.folder / "result.json").read_text(encoding="utf-8"))

    def prepare(self):
        """Images, the packed model, the float model as ONNX."""
        options = self.options
        print("preparing images and models", file=sys.stderr, flush=True)
        counts = self.worker("images", data=options.data, images=options.images if options.images >= 0 else 500,
                             calibration_images=options.calibration_images)
        floats = self.folder / "float32.safetensors"
        self.tool("export", options.model, "--to", "safetensors", "-o", floats)
        self.image_size = self.tool("export", floats, "--to", "onnx", "-o", self.onnx)["image_size"]
        if not self.packed:
            self.packed = self.folder / "packed.safetensors"
            words = [options.data if word == "DATA" else word for word in options.pack.split()]
            self.tool("pack", options.model, *words, "-o", self.packed)
        return counts

    def model_of(self, side):
        return self.packed if side.get("packed") else self.options.model

    def arguments_of(self, side):
        return [self.model_of(side), "--device", "cpu", "--precision", side["precision"], "--threads",
                self.options.threads]

    def quantize(self, side):
        if self.options.isa and side["engine"] == "onnxruntime":
            raise Failed(f"cannot be limited to {self.options.isa}")
        if "quantization" in side and not (self.folder / f"openvino-{side['quantization']}.xml").exists():
            self.versions["nncf"] = self.worker("quantize", side)["version"]

    def classify(self, side):
        """The likeliest class of each image, the labels, and facts about the engine."""
        if side["engine"] != "nibblenet":
            return self.worker("classify", side)
        logits = self.folder / "logits.safetensors"
        report = self.tool("eval", *self.arguments_of(side), "--data", self.images, "--logits", logits)
        return {**self.worker("read logits", logits=str(logits)), "precision": report["precision"]}

    def time(self, side, batch):
        if side["engine"] != "nibblenet":
            return self.worker("time", side, batch=batch)
        report = self.tool("bench", *self.arguments_of(side), "--batch", batch, "--seconds", self.options.seconds)
        row = report["results"][0]
        return {"median_ms": row["latency_ms"], "samples": row["samples"], "description": report["description"]}


def mcnemar(lost, won):
    """Two-sided exact probability of so uneven a split of the images that only one of two sides gets right."""
    count, least = lost + won, min(lost, won)
    tail = sum(math.exp(math.lgamma(count + 1) - math.lgamma(i + 1) - math.lgamma(count - i + 1) - count * math.log(2))
               for i in range(least + 1))
    return min(1.0, 2 * tail)


def compare(row, other):
    """Images that only `other` gets right, those that only `row` does, and McNemar's p."""
    if row["labels"] != other["labels"]:
        raise SystemExit(f"{row['side']} saw other images than {other['side']}")
    mine, theirs = ([a == b for a, b in zip(each["predictions"], each["labels"])] for each in (row, other))
    lost = sum(b and not a for a, b in zip(mine, theirs))
    won = sum(a and not b for a, b in zip(mine, theirs))
    return lost, won, mcnemar(lost, won)


def add_accuracies(rows):
    """Accuracy of each side; images lost and won beside our float32."""
    reference = next((row for row in rows if row["side"] == REFERENCE and "predictions" in row), None)
    for row in rows:
        if "predictions" not in row:
            continue
        row["accuracy"] = sum(a == b for a, b in zip(row["predictions"], row["labels"])) / len(row["labels"])
        if reference:
            row["lost"], row["won"], row["mcnemar_p"] = compare(row, reference)


def measure(run, sides):
    """One row a side. The order of the sides rotates from round to round."""
    rows = {name: {"side": name, **side, "times": []} for name, side in sides.items()}

    def attempt(name, work):
        if "not_measured" in rows[name]:
            return
        print(f"{name}: {work.__name__}", file=sys.stderr, flush=True)
        try:
            work()
        except Failed as problem:
            rows[name]["not_measured"] = str(problem)
            print(f"not measured: {name}: {problem}", file=sys.stderr)

    for name, side in sides.items():
        def accuracy(name=name, side=side):
            run.quantize(side)
            if run.options.images >= 0:
                rows[name].update(run.classify(side))
        attempt(name, accuracy)
    names = list(sides)
    for batch in run.options.batches:
        rounds = {name: [] for name in names}
        for index in range(run.options.rounds):
            shift = index % len(names)
            for name in names[shift:] + names[:shift]:
                def timing(name=name):
                    timed = run.time(sides[name], batch)
                    rounds[name].append(timed.pop("median_ms"))
                    rows[name].update(timed)
                attempt(name, timing)
        for name, medians in rounds.items():
            if medians:
                rows[name]["times"].append({"batch": batch, "median_ms": statistics.median(medians),
                                            "min_ms": min(medians), "max_ms": max(medians), "rounds_ms": medians})
    return list(rows.values())


def cell(row, batch):
    time_of = time_at(row, batch)
    if time_of is None:
        return ""
    digits = 1 if time_of["median_ms"] >= 100 else 2
    return f"{time_of['median_ms']:.{digits}f} ({time_of['min_ms']:.{digits}f}–{time_of['max_ms']:.{digits}f})"


def time_at(row, batch):
    return next((entry for entry in row["times"] if entry["batch"] == batch), None)


def table(rows, batches, images):
    """The rows as Markdown."""
    header = ["ms: median (smallest–largest round)", *(f"batch {batch}" for batch in batches)]
    if images:
        header += [f"accuracy of {images}", "lost, won, p"]
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    for row in rows:
        line = [row["side"], *(cell(row, batch) for batch in batches)]
        if images:
            line.append(f"{100 * row['accuracy']:.2f} %" if "accuracy" in row else "")
            line.append(f"{row['lost']}, {row['won']}, {row['mcnemar_p']:.2g}" if "lost" in row else "")
        if "not_measured" in row:
            line[1] = f"not measured: {row['not_measured']}" + (f"; {line[1]}" if line[1] else "")
        lines.append(line)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def ratios(rows, batches):
    """How many times as fast our float32 is as the fastest peer in float32, and our fastest side of 4 bits as the fastest
    peer of any precision that is not significantly less accurate than it, by batch."""
    def fastest(batch, test):
        found = [(time_at(row, batch)["median_ms"], row) for row in rows if time_at(row, batch) and test(row)]
        return min(found, key=lambda pair: pair[0], default=(None, None))[1]

    def is_ours(row):
        return row["engine"] == "nibblenet"

    def is_plain(row):
        return row["precision"] == "float32" and not row.get("packed") and not row.get("quantization")

    def is_as_accurate(row, ours):
        """As far as accuracies were measured."""
        if "predictions" not in row or "predictions" not in ours:
            return True
        lost, won, p = compare(row, ours)
        return lost <= won or p >= 0.05

    def ratio_of(kind, batch, ours, peer):
        if not ours or not peer:
            return []
        mine, theirs = time_at(ours, batch), time_at(peer, batch)
        return [{"kind": kind, "batch": batch, "ours": ours["side"], "peer": peer["side"],
                 "ratio": theirs["median_ms"] / mine["median_ms"],
                 "ratios": [b / a for a, b in zip(mine["rounds_ms"], theirs["rounds_ms"])]}]
    found = []
    for batch in batches:
        ours = fastest(batch, lambda row: is_ours(row) and is_plain(row))
        found += ratio_of("float32", batch, ours, fastest(batch, lambda row: not is_ours(row) and is_plain(row)))
    for batch in batches:
        ours = fastest(batch, lambda row: is_ours(row) and row.get("packed"))
        peer = ours and fastest(batch, lambda row, ours=ours: not is_ours(row) and is_as_accurate(row, ours))
        found += ratio_of("any precision", batch, ours, peer)
    return found


def processor():
    """The processor's name, and which of the instruction sets that matter here it has."""
    name, flags = platform.processor(), set()
    if os.path.exists("/proc/cpuinfo"):
        for line in pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            elif key.strip() == "flags":
                flags = set(value.split())
    sets = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16")
            if flag in flags]
    return name, sets


def load():
    return round(os.getloadavg()[0], 2)


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="float model, .safetensors with F32 or F16")
    parser.add_argument("--packed", help="the same model packed; without it --pack makes it")
    parser.add_argument("--pack", default="--bits 4 --calibrate DATA",
                        help="options of tools/pack; DATA becomes that of --data (default: %(default)s)")
    parser.add_argument("--data", required=True,
                        help="folder or .tar.gz of 32 x 32 images: train/<class>/*, test/…, or CIFAR-10's binary version")
    parser.add_argument("--images", type=int, default=2000,
                        help="test images that accuracy is measured on; 0: all; -1: none (default: %(default)s)")
    parser.add_argument("--calibration-images", type=int, default=300,
                        help="training images that NNCF quantizes by (default: %(default)s, as its own)")
    parser.add_argument("--environment", default=str(ROOT / "build/peers"), help="virtual environment with the peers")
    parser.add_argument("--install", action="store_true",
                        help="first make that environment, and install or complete the peers: several GB from PyPI")
    parser.add_argument("--tools", default=str(ROOT / "build/cpu/tools"), help="folder of the built tools")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--batches", default="1,8,128", type=lambda text: [int(batch) for batch in text.split(",")])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="sampling time of each side, batch and round")
    parser.add_argument("--isa", choices=sorted(LIMITS), help="limit every engine to this instruction set")
    parser.add_argument("--sides", help="only these, separated by semicolons: " + "; ".join(SIDES))
    parser.add_argument("--json", help="write the results to this file")
    options = parser.parse_args()
    names = options.sides.split(";") if options.sides else list(SIDES)
    names = [name.strip() for name in names]
    unknown = [name for name in names if name not in SIDES]
    if unknown:
        parser.error(f"unknown sides {unknown}; there are: {'; '.join(SIDES)}")
    return options, {name: SIDES[name] for name in names}


def main():
    options, sides = parse_options()
    missing = install(pathlib.Path(options.environment)) if options.install else {}
    began, load_before = time.time(), load()
    with tempfile.TemporaryDirectory(prefix="compare-cpu-") as folder:
        run = Run(options, folder)
        try:
            counts = run.prepare()
            version = call([pathlib.Path(options.tools) / "bench", "--version"], run.environment).splitlines()
            commit = next((line for line in version if line.startswith("commit: ")), version[0])
        except Failed as problem:
            sys.exit(f"nothing was measured: {problem}")
        rows = measure(run, sides)
    images = counts["images"] if options.images >= 0 else 0
    if images:
        add_accuracies(rows)
    speeds = ratios(rows, options.batches)
    labels = [row.pop("labels", None) for row in rows]
    name, sets = processor()
    report = {"processor": name, "instruction_sets": sets, "limited_to": options.isa, "threads": options.threads,
              "date": datetime.datetime.now().isoformat(timespec="seconds"), "nibblenet": commit,
              "seconds": round(time.time() - began), "load_before": load_before, "rounds": options.rounds,
              "sampling_seconds": options.seconds, "pack": "given" if options.packed else options.pack,
              "not_installed": missing, **counts, "nncf": run.versions.get("nncf"), "sides": rows,
              "labels": next(filter(None, labels), None), "ratios": speeds}
    versions = sorted({f"{row['engine']} {row['version']}" for row in rows if "version" in row})
    print(f"{name} ({', '.join(sets)}), {options.threads} threads"
          + (f", limited to {options.isa}" if options.isa else ""))
    print(f"nibblenet, {commit}; {', '.join(versions)}; {options.rounds} rounds; load {load_before} before\n")
    print(table(rows, options.batches, images))
    for ratio in report["ratios"]:
        print(f"\nbatch {ratio['batch']}, {ratio['kind']}: {ratio['ours']} is {ratio['ratio']:.2f} "
              f"({min(ratio['ratios']):.2f}–{max(ratio['ratios']):.2f}) times as fast as {ratio['peer']}", end="")
    print()
    for row in rows:
        if "runs_in" in row:
            print(f"{row['side']}: {row['runs_in']}")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)


if __name__ == "__main__":
    main()
