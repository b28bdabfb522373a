#!/usr/bin/env python3
"""Tables and plots of docs/results.md from the JSON of `tools/bench --compare` and, in the same form, of
compare_pytorch.py. Reports of `tools/finetune --json` may follow. What was not measured is not there.

usage: performance_tables.py COMPARE.json [PYTORCH.json ...] [FINETUNE.json ...] [--compiled FILE] [--note TEXT]
                             [--docs FILE] [--plots FOLDER]

Without --docs the text is printed. With it, the part of FILE between the lines
<!-- compared: begin --> and <!-- compared: end --> is replaced. Plots are gnuplot's, SVG.
"""

import argparse
import json
import math
import os
import sys

from measurements import batches_of, floor_ms, layer_floor_ms, layer_rank, read_compiled, result_of
from performance_plots import draw, plots_of

LAYERS_OVERLAP = ("Runs of a layer follow each other. On a GPU the weights of one run arrive during the run before (PDL): these "
                  "times suit bandwidths, and are no latencies.")
BEGIN, END = "<!-- compared: begin -->", "<!-- compared: end -->"


def number(value):
    """Three digits that count."""
    if not value:
        return "" if value is None else "0"
    return f"{value:,.{min(6, max(0, 2 - math.floor(math.log10(abs(value)))))}f}"


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "|".join("---" if i < 2 else "---:" for i in range(len(head))) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def main_table(report, task, caches):
    sides = report["sides"]
    batches = batches_of(sides)
    shown = [batch for batch in (1, 8, 16, 128, 1024) if batch in batches] or batches
    last = shown[-1]
    of_accuracy = any(side.get("accuracy") is not None for side in sides)
    of_floor = sorted({shown[0], last}) if task == "T224" else []
    head = ["side", "activations", "weights, MB", *[f"batch {batch}, ms" for batch in shown], f"images/s at {last}",
            "error of logits", *(["accuracy, %"] if of_accuracy else []), *[f"% of floor, {batch}" for batch in of_floor]]
    rows = []
    for side in sides:
        if result_of(side, task, shown[0], caches) is None:
            continue
        times = [result_of(side, task, batch, caches) for batch in shown]
        row = [side["side"], side["activations"], number(side["weight_bytes"] / 1e6), *map(number, times),
               number(1e3 * last / times[-1]) if times[-1] else "", "" if side["relative_error"] is None else f"{side['relative_error']:.1e}"]
        if of_accuracy:
            row.append("" if side.get("accuracy") is None else f"{100 * side['accuracy']:.2f}")
        for batch in of_floor:
            floor, time = floor_ms(side, batch, report["ceilings"]), result_of(side, task, batch, caches)
            row.append(f"{100 * floor / time:.0f}" if floor and time else "")
        rows.append(row)
    return table(head, rows)


def layer_table(report, batch):
    """Each layer of each side: time, achieved rates, and the share of what the device could do at best."""
    rows = []
    for side in report["sides"]:
        for layer in side["layers"]:
            if layer["batch"] != batch:
                continue
            time = layer["cold_ms"] or layer["warm_ms"]
            rows.append([layer["name"], side["side"], "cold" if layer["cold_ms"] else "warm", number(1e3 * time),
                         number(layer["bytes"] / time / 1e6), number(layer["flops"] / time / 1e9),
                         f"{100 * layer_floor_ms(layer, side, report['ceilings']) / time:.0f}"])
    rows.sort(key=lambda row: layer_rank(row[0]))
    return table(["layer", "side", "caches", "µs", "GB/s", "TFLOP/s", "% of ceiling"], rows)


def text_of(report, links, note):
    ceilings = report["ceilings"]
    others = "".join(f", {number(ceilings[f'{name}_teraflops'])} {unit} in {name}"
                     for name, unit in (("float16", "TFLOP/s"), ("bfloat16", "TFLOP/s"), ("int8", "TOP/s"))
                     if ceilings.get(f"{name}_teraflops"))
    parts = [f"{report['description']}. At best, in the same run: {number(ceilings['gigabytes_per_second'])} GB/s, "
             f"{number(ceilings['float32_teraflops'])} TFLOP/s in float32{others} ({ceilings['products_by']})."
             + (f" {note}." if note else "")]
    missing = report.get("baseline", report.get("yardstick"))  # its name before 0.2
    if missing:
        parts.append(f"cuDNN and cuBLASLt: not measured ({missing}).")
    for side in report["sides"]:
        if side.get("not_measured"):
            parts.append(f"{side['side']}: not measured ({side['not_measured']}).")
    for task, what in (("T224", "from prepared images to logits"), ("T32", "from 32 × 32 bytes to logits")):
        for caches in ("warm", "cold"):
            parts += [f"### {task}, {what}, caches {caches}", main_table(report, task, caches)]
    batches = sorted({layer["batch"] for side in report["sides"] for layer in side["layers"]})
    for batch in sorted({batches[0], batches[-1]}) if batches else []:
        parts += [f"### Layers alone, batch {batch}", LAYERS_OVERLAP, layer_table(report, batch)]
    return "\n\n".join(parts + links)


def replace_part(path, text):
    with open(path, encoding="utf-8") as file:
        content = file.read()
    if content.count(BEGIN) != 1 or content.count(END) != 1:
        sys.exit(f"{path} needs one line {BEGIN} and one line {END}")
    before, after = content.split(BEGIN)[0], content.split(END)[1]
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"{before}{BEGIN}\n{text}\n{END}{after}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", nargs="+", metavar="REPORT.json")
    parser.add_argument("--note", default="", help="machine, driver, commit and date, as the text should give them")
    parser.add_argument("--compiled", help="what tests/gpu/compiled_code.sh printed")
    parser.add_argument("--docs")
    parser.add_argument("--plots", metavar="FOLDER")
    options = parser.parse_args()
    reports = []
    for path in options.reports:
        with open(path, encoding="utf-8") as file:
            reports.append(json.load(file))
    report = reports[0]
    if "ceilings" not in report:
        sys.exit(f"{options.reports[0]} has no ceilings; the first report has to be one of tools/bench --compare")
    trainings = [other for other in reports if "epochs" in other]
    for other in reports[1:]:
        report["sides"] += other.get("sides", [])
    compiled = None
    if options.compiled:
        with open(options.compiled, encoding="utf-8") as file:
            compiled = read_compiled(file.read())
    links = []
    if options.plots:
        os.makedirs(options.plots, exist_ok=True)
        beside = os.path.dirname(options.docs) if options.docs else ""
        for name, caption, commands in plots_of(report, compiled, trainings):
            if not commands:
                print(f"{name} is not drawn: it needs {caption}", file=sys.stderr)
                continue
            draw(name, commands, options.plots)
            links.append(f"![{caption}]({os.path.relpath(os.path.join(options.plots, name + '.svg'), beside or '.')})")
    text = text_of(report, links, options.note)
    if options.docs:
        replace_part(options.docs, text)
    else:
        print(text)


if __name__ == "__main__":
    main()
