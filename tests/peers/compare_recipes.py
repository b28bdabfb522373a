#!/usr/bin/env python3
"""What each option of a training recipe is worth alone: trains a narrow AlexNet at 64 pixels with every option and
several seeds, and compares accuracies on the held-out validation images. The test images' figures are not read.

usage: compare_recipes.py --data PATH --work FOLDER [--finetune PROGRAM] [--seeds 1,2,3] [--docs FILE]

A run that has its report in --work is not repeated: stopped, the same command goes on. A report belongs to its whole
command, so other settings are other runs. Runs go one after the other, on one thread. Without --docs the table is
printed; with it, the part of FILE between <!-- recipes: begin --> and <!-- recipes: end --> is replaced.
Needs nothing but Python.
"""

import argparse
import array
import hashlib
import json
import math
import os
import statistics
import struct
import subprocess
import sys
import textwrap

BEGIN, END = "<!-- recipes: begin -->", "<!-- recipes: end -->"
CHANNELS, NEURONS, CLASSES = [32, 64, 96, 64, 64], [128, 64], 10
BASE = {
    "--freeze": "none", "--reset": "all", "--image-size": "64", "--train-limit": "4000", "--test-limit": "2000",
    "--epochs": "8", "--batch": "16", "--lr": "0.005", "--schedule": "warmup-cosine", "--momentum": "0.9",
    "--weight-decay": "0.0005", "--dropout": "0.1", "--augment": "flip",
}
# What each row changes of BASE.
ROWS = [
    {},
    {"--ema": "0.99"},
    {"--label-smoothing": "0.1"},
    {"--mixup": "0.2"},
    {"--cutmix": "1"},
    {"--augment": "flip-shift"},
    {"--bias-lr": "8"},
    {"--first-filters": "whitened"},
    {"--schedule": "constant"},
]
# Student's t for 95 %, two-sided, by degrees of freedom.
T95 = [math.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262]


def write_shape(path):
    """A float AlexNet of these sizes, all zeros: --reset all takes nothing but its sizes."""
    shapes, inputs = {}, 3
    for number, outputs, size in zip((0, 3, 6, 8, 10), CHANNELS, (11, 5, 3, 3, 3)):
        shapes[f"features.{number}.weight"] = [outputs, inputs, size, size]
        shapes[f"features.{number}.bias"] = [outputs]
        inputs = outputs
    inputs *= 36
    for number, outputs in zip((1, 4, 6), NEURONS + [CLASSES]):
        shapes[f"classifier.{number}.weight"] = [outputs, inputs]
        shapes[f"classifier.{number}.bias"] = [outputs]
        inputs = outputs
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        array.array("f", bytes(end)).tofile(file)


def name_of(change):
    return " ".join(word for pair in change.items() for word in pair) or "none"


def report_of(arguments, change, seed):
    """The report of finetune for this run, from --work or from training now."""
    options = [word for pair in {**BASE, **change}.items() for word in pair]
    command = ["--validation", *options, "--seed", str(seed)]
    digest = hashlib.sha256(" ".join(command).encode()).hexdigest()[:10]
    path = os.path.join(arguments.work, f"{digest}.json")
    if not os.path.exists(path):
        print(f"{name_of(change)}, seed {seed}", flush=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        model = os.path.join(arguments.work, f"{digest}.safetensors")
        command = [arguments.finetune, "--data", arguments.data, "--threads", "1", "--device", "cpu", "--init",
                   os.path.join(arguments.work, "shape.safetensors"), *command, "--out", model, "--json", path,
                   "--checkpoint-every", "100000", "--force"]
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        for leftover in (model, model.replace(".safetensors", ".checkpoint.safetensors")):
            os.remove(leftover)
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def interval(values):
    """Half the width of the 95 % interval of the mean."""
    if len(values) < 2:
        return math.nan
    return T95[min(len(values) - 1, len(T95) - 1)] * statistics.stdev(values) / math.sqrt(len(values))


def table(results, seeds):
    """`results`: for each row its reports, one a seed."""
    base = results[0]
    report = base[0]
    options = " ".join(word for pair in BASE.items() for word in pair)
    lines = [
        *textwrap.wrap(
            f"{report['train_images']:,} training images, {report['validation']['images']:,} held-out ones, "
            f"{len(seeds)} seeds. Channels {', '.join(map(str, CHANNELS))}, neurons {', '.join(map(str, NEURONS))}. "
            "All runs have these options and `--validation`:", 100, break_long_words=False), "",
        "```", *textwrap.wrap(options, 100, break_on_hyphens=False), "```", "",
        "| changed | validation accuracy, each seed | mean | against none, 95 % interval | validation loss | seconds |",
        "|---|---|---:|---|---:|---:|",
    ]
    for change, reports in zip(ROWS, results):
        accuracies = [100 * r["validation"]["accuracy"] for r in reports]
        gains = [a - 100 * b["validation"]["accuracy"] for a, b in zip(accuracies, base)]
        gain = f"{statistics.mean(gains):+.2f} ± {interval(gains):.2f}" if change else ""
        loss = statistics.mean(r["validation"]["loss"] for r in reports)
        seconds = statistics.mean(sum(e["seconds"] for e in r["epochs"]) for r in reports)
        name = f"`{name_of(change)}`" if change else "none"
        lines.append(f"| {name} | {', '.join(f'{a:.2f}' for a in accuracies)} | {statistics.mean(accuracies):.2f} % | "
                     f"{gain} | {loss:.4f} | {seconds:.0f} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="images, as finetune takes them")
    parser.add_argument("--work", required=True, help="folder of the reports")
    parser.add_argument("--finetune", default="tools/finetune", help="the program")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--docs", help="document whose table is replaced")
    arguments = parser.parse_args()
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    os.makedirs(arguments.work, exist_ok=True)
    write_shape(os.path.join(arguments.work, "shape.safetensors"))
    results = [[] for _ in ROWS]
    for seed in seeds:  # a seed of all rows first: what is there early is a comparison
        for row, change in zip(results, ROWS):
            row.append(report_of(arguments, change, seed))
    text = table(results, seeds)
    if not arguments.docs:
        print(text)
        return
    with open(arguments.docs, encoding="utf-8") as file:
        document = file.read()
    if BEGIN not in document or END not in document:
        sys.exit(f"{arguments.docs} has no lines {BEGIN} and {END}")
    head, tail = document.split(BEGIN)[0], document.split(END)[1]
    with open(arguments.docs, "w", encoding="utf-8") as file:
        file.write(f"{head}{BEGIN}\n\n{text}\n{END}{tail}")


if __name__ == "__main__":
    main()
