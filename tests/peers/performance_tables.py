#!/usr/bin/env python3
"""Tables and plots of docs/performance.md from the JSON of `tools/bench --compare` and, in the same form, of
compare_pytorch.py. What was not measured is not there.

usage: performance_tables.py COMPARE.json [PYTORCH.json ...] [--note TEXT] [--docs FILE] [--plots FOLDER]

Without --docs the text is printed. With it, the part of FILE between the lines
<!-- compared: begin --> and <!-- compared: end --> is replaced. Plots are gnuplot's, SVG.
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys

BEGIN, END = "<!-- compared: begin -->", "<!-- compared: end -->"
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F9F00", "#888888", "#8C510A", "#01665E",
           "#B2182B"]


def bits_of(side):
    """8 for linear:8:channel, 16 and 32 for floats; None for what is no point on that axis."""
    if side["first_folded"] or not side["engine"].startswith("nibblenet, ") or side["side"].startswith("cudnn:"):
        return None
    match = re.fullmatch(r"linear:(\d):channel", side["side"])
    return int(match[1]) if match else {"float16": 16, "float32": 32}.get(side["side"])


def result_of(side, task, batch, caches):
    """Median in ms, or None."""
    return next((result["median_ms"] for result in side["results"]
                 if (result["task"], result["batch"], result["caches"]) == (task, batch, caches)), None)


def batches_of(sides):
    return sorted({result["batch"] for side in sides for result in side["results"]})


def peak_of(side, ceilings):
    """Operations a second of large products in the side's precision; float32's where there is none of its own."""
    halves = side["activations"] in ("float16", "bfloat16") and ceilings["float16_teraflops"]
    return 1e12 * (ceilings["float16_teraflops"] if halves else ceilings["float32_teraflops"])


def layer_floor_ms(layer, side, ceilings):
    return 1e3 * max(layer["flops"] / peak_of(side, ceilings), layer["bytes"] / (1e9 * ceilings["gigabytes_per_second"]))


def floor_ms(side, batch, ceilings):
    """What the layers take at least, one after the other, at the ceilings that were measured; None without layers."""
    layers = [layer for layer in side["layers"] if layer["batch"] == batch]
    return sum(layer_floor_ms(layer, side, ceilings) for layer in layers) if layers else None


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
    of_floor = sorted({shown[0], last}) if task == "T224" else []
    head = ["side", "activations", "weights, MB", *[f"batch {batch}, ms" for batch in shown], f"images/s at {last}",
            "error of logits", *[f"% of floor, {batch}" for batch in of_floor]]
    rows = []
    for side in sides:
        if result_of(side, task, shown[0], caches) is None:
            continue
        times = [result_of(side, task, batch, caches) for batch in shown]
        row = [side["side"], side["activations"], number(side["weight_bytes"] / 1e6), *map(number, times),
               number(1e3 * last / times[-1]) if times[-1] else "", f"{side['relative_error']:.1e}"]
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


def layer_rank(name):
    group, index = name.replace("+pool", ".5").split(".", 1)
    return (group != "features", float(index))


def data_block(name, points):
    return f"${name} << end_of_data\n" + "".join(f"{x} {y}\n" for x, y in points) + "end_of_data\n"


def curves(series):
    """gnuplot commands that draw [(label, points)]."""
    blocks = "".join(data_block(f"series_{i}", points) for i, (_, points) in enumerate(series))
    parts = [f"$series_{i} with linespoints lw 2 pt {5 + 2 * (i % 5)} dt {1 + i // len(COLOURS)} "
             f"lc rgb '{COLOURS[i % len(COLOURS)]}' title \"{label}\" noenhanced" for i, (label, _) in enumerate(series)]
    return blocks + "plot " + ", \\\n  ".join(parts) + "\n"


def plot_bits(report, batch):
    """Latency against bits at the smallest batch: it should flatten where reading weights is no longer all."""
    sides = [(bits_of(side), side) for side in report["sides"] if bits_of(side)]
    series = []
    for caches in ("cold", "warm"):
        points = sorted((bits, result_of(side, "T224", batch, caches)) for bits, side in sides)
        series.append((caches, [(bits, time) for bits, time in points if time]))
    floor = sorted((bits, floor_ms(side, batch, report["ceilings"])) for bits, side in sides)
    series.append(("floor", [(bits, time) for bits, time in floor if time]))
    return ("set logscale x 2\nset xtics (2,3,4,5,6,7,8,16,32)\nset xlabel 'bits a weight'\n"
            f"set ylabel 'ms, batch {batch}'\nset yrange [0:*]\n" + curves(series))


def plot_throughput(report, task):
    series = []
    for side in report["sides"]:
        points = [(batch, 1e3 * batch / time) for batch in batches_of(report["sides"])
                  if (time := result_of(side, task, batch, "warm"))]
        if points:
            series.append((side["side"], points))
    return ("set logscale x 2\nset xlabel 'batch'\nset ylabel 'images a second'\nset key outside right top\n"
            "set yrange [0:*]\n" + curves(series))


def fc1_times(report):
    """bits -> {batch: (ms, bytes)} of the largest layer, cold where that could be measured."""
    times = {}
    for side in report["sides"]:
        for layer in side["layers"]:
            if bits_of(side) and layer["name"] == "classifier.1":
                times.setdefault(bits_of(side), {})[layer["batch"]] = (layer["cold_ms"] or layer["warm_ms"],
                                                                       layer["bytes"])
    return times


def plot_fc1_speed(report):
    """How often faster than its own floats fc1 is: where packing stops paying."""
    times = fc1_times(report)
    base = times.get(16) or times.get(32)
    if not base:
        return None
    label = "float16" if 16 in times else "float32"
    series = [(f"{bits} bits", sorted((batch, base[batch][0] / time) for batch, (time, _) in of_batch.items()
                                      if batch in base)) for bits, of_batch in sorted(times.items()) if bits < 16]
    return ("set logscale x 2\nset xlabel 'batch'\nset yrange [0:*]\n"
            f"set ylabel 'times as fast as {label}, classifier.1'\n" + curves(series))


def plot_fc1_bandwidth(report, batch):
    """Bytes of fc1 a second against bits: flat where memory is the limit, falling where unpacking is."""
    points = [(bits, of_batch[batch][1] / of_batch[batch][0] / 1e6)
              for bits, of_batch in sorted(fc1_times(report).items()) if batch in of_batch]
    limit = report["ceilings"]["gigabytes_per_second"]
    return ("set logscale x 2\nset xtics (2,3,4,5,6,7,8,16,32)\nset xlabel 'bits a weight'\nset yrange [0:*]\n"
            f"set ylabel 'GB/s of classifier.1, batch {batch}'\n"
            + curves([("achieved", points), ("ceiling", [(2, limit), (32, limit)])]))


def plot_stacked(report, batch):
    """Share of each layer in the sum of the layers' times, by side."""
    names = sorted({layer["name"] for side in report["sides"] for layer in side["layers"]}, key=layer_rank)
    sides = [side for side in report["sides"] if any(layer["batch"] == batch for layer in side["layers"])]
    lines = []
    for side in sides:
        time = {layer["name"]: layer["warm_ms"] for layer in side["layers"] if layer["batch"] == batch}
        lines.append(f'"{side["side"]}" ' + " ".join(str(time.get(name, 0)) for name in names))
    block = "$layers << end_of_data\n" + "\n".join(lines) + "\nend_of_data\n"
    parts = [f"$layers using {i + 2}:xtic(1) lc rgb '{COLOURS[i % len(COLOURS)]}' title \"{name}\" noenhanced" for i, name in enumerate(names)]
    return (block + "set style data histograms\nset style histogram rowstacked\nset style fill solid 0.9\n"
            "set boxwidth 0.75\nset xtics rotate by -45 noenhanced\nset key outside right top invert\n"
            f"set ylabel 'ms, batch {batch}, warm'\nset yrange [0:*]\nplot " + ", \\\n  ".join(parts) + "\n")


def plots_of(report):
    """Name -> (caption, commands)."""
    batches = sorted({layer["batch"] for side in report["sides"] for layer in side["layers"]})
    plots = {f"performance_images_{task.lower()}": (f"Images a second against the batch, {task}, caches warm",
                                                    plot_throughput(report, task)) for task in ("T224", "T32")}
    if sum(1 for side in report["sides"] if bits_of(side)) > 1 and batches:
        plots["performance_bits"] = (f"Latency against bits at batch {batches[0]}", plot_bits(report, batches[0]))
        plots["performance_fc1_bandwidth"] = ("Bytes of the largest layer a second against bits",
                                              plot_fc1_bandwidth(report, batches[0]))
        if plot_fc1_speed(report):
            plots["performance_fc1_speed"] = ("The largest layer against its own floats, by batch",
                                              plot_fc1_speed(report))
    for batch in sorted({batches[0], batches[-1]}) if batches else []:
        plots[f"performance_layers_{batch}"] = (f"Layers' times, each alone, at batch {batch}",
                                                plot_stacked(report, batch))
    return plots


def draw(name, commands, folder):
    script = (f"set terminal svg size 840,480 dynamic font 'sans-serif,14' background 'white'\n"
              f"set output '{name}.svg'\nset grid\n{commands}unset output\n")
    subprocess.run(["gnuplot", "-d", "-"], input=script, text=True, cwd=folder, check=True)


def text_of(report, links, note):
    ceilings = report["ceilings"]
    halves = f", {number(ceilings['float16_teraflops'])} TFLOP/s in float16" if ceilings["float16_teraflops"] else ""
    parts = [f"{report['description']}. At best, in the same run: {number(ceilings['gigabytes_per_second'])} GB/s, "
             f"{number(ceilings['float32_teraflops'])} TFLOP/s in float32{halves} ({ceilings['products_by']})."
             + (f" {note}." if note else "")]
    if report.get("yardstick"):
        parts.append(f"cuDNN and cuBLASLt: not measured ({report['yardstick']}).")
    for task, what in (("T224", "from prepared images to logits"), ("T32", "from 32 × 32 bytes to logits")):
        for caches in ("warm", "cold"):
            parts += [f"### {task}, {what}, caches {caches}", main_table(report, task, caches)]
    batches = sorted({layer["batch"] for side in report["sides"] for layer in side["layers"]})
    for batch in sorted({batches[0], batches[-1]}) if batches else []:
        parts += [f"### Layers alone, batch {batch}", layer_table(report, batch)]
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
    for other in reports[1:]:
        report["sides"] += other["sides"]
    links = []
    if options.plots:
        os.makedirs(options.plots, exist_ok=True)
        beside = os.path.dirname(options.docs) if options.docs else ""
        for name, (caption, commands) in plots_of(report).items():
            draw(name, commands, options.plots)
            links.append(f"![{caption}]({os.path.relpath(os.path.join(options.plots, name + '.svg'), beside or '.')})")
    text = text_of(report, links, options.note)
    if options.docs:
        replace_part(options.docs, text)
    else:
        print(text)


if __name__ == "__main__":
    main()
