"""Plots of docs/results.md, as commands for gnuplot."""

import subprocess

from measurements import batches_of, bits_of, floor_ms, layer_rank, operations_of, result_of

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F9F00", "#888888", "#8C510A", "#01665E",
           "#B2182B"]


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


def plot_energy(report):
    """Energy of an image against the batch, a curve a side; None where it was not measured."""
    series = []
    for side in report["sides"]:
        points = sorted((result["batch"], 1e3 * joules) for result in side["results"]
                        if (joules := result.get("joules_per_image")))
        if points:
            series.append((side["side"], points))
    if not series:
        return None
    return ("set logscale xy\nset xlabel 'batch'\nset ylabel 'mJ an image'\nset key outside right top\n" +
            curves(series))


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


def scatter(series, before, more=()):
    """gnuplot commands that draw [(label, points)], unconnected, and what `more` plots."""
    blocks = "".join(data_block(f"series_{i}", points) for i, (_, points) in enumerate(series))
    parts = [f"$series_{i} with points ps 1.2 pt {5 + 2 * (i % 5)} lc rgb '{COLOURS[i % len(COLOURS)]}' "
             f'title "{label}" noenhanced' for i, (label, _) in enumerate(series)]
    return f"set key outside right top\n{before}{blocks}plot " + ", \\\n  ".join([*parts, *more]) + "\n"


def plot_instructions(compiled):
    """Instructions that unpacking a weight takes, as compiled, beside what the test lets it take."""
    architectures = sorted({row["architecture"] for row in compiled["instructions"]})
    series = []
    for architecture in architectures:
        rows = [row for row in compiled["instructions"] if row["architecture"] == architecture]
        series += [(f"{kind}, {architecture}", [(row["bits"], row[kind]) for row in rows]) for kind in ("linear", "others")]
    series.append(("most that linear codes may take", [(row["bits"], row["most"]) for row in rows]))
    return ("set xlabel 'bits a weight'\nset xtics 1\nset yrange [0:*]\nset key outside right top\n"
            "set ylabel 'instructions a weight'\n" + curves(series))


def plot_accuracy(report, of_side, label):
    """Accuracy against of_side(side), a point a side: up and to the left is better."""
    series = [(side["side"], [(of_side(side), 100 * side["accuracy"])]) for side in report["sides"]
              if side.get("accuracy") is not None and of_side(side)]
    if not series:
        return None
    return scatter(series, f"set logscale x\nset xlabel '{label}'\nset ylabel 'accuracy, %, {report['images']} images'\n")


def plot_operations(report, batch):
    """Latency against the operations of the recorded pass, above the same number of operations that do nothing."""
    chains = [(chain["operations"], chain["ms"]) for chain in report["ceilings"].get("chains", [])]
    series = []
    for side in report["sides"]:
        operations, time = operations_of(side, "T224", batch), result_of(side, "T224", batch, "warm")
        if operations and time:
            series.append((side["side"], [(operations, time)]))
    if not chains or not series:
        return None
    line = "$chains with linespoints lw 2 lc rgb '#888888' title 'operations that do nothing'"
    return scatter(series, "set xlabel 'operations of a recorded pass'\nset xrange [0:*]\nset yrange [0:*]\n"
                   f"set ylabel 'ms, batch {batch}, warm'\n" + data_block("chains", chains), [line])


def plot_training(trainings):
    """Accuracy after each epoch against the time that training took, of each report of tools/finetune."""
    series = []
    for training in trainings:
        seconds, points = 0, []
        for epoch in training["epochs"]:
            seconds += epoch["seconds"]
            accuracy = epoch["validation_accuracy" if "validation_accuracy" in epoch else "test_accuracy"]
            points.append((seconds, 100 * accuracy))
        series.append((f"{training['device']}, batch {training['options']['batch']}", points))
    return "set xlabel 'seconds of training'\nset ylabel 'test accuracy, %'\n" + curves(series)


def plots_of(report, compiled, trainings):
    """[(name, caption, commands)]; where there is nothing to draw, (name, what is missing, None)."""
    sides = report["sides"]
    batches = batches_of(sides)
    layer_batches = sorted({layer["batch"] for side in sides for layer in side["layers"]})
    several_widths = sum(1 for side in sides if bits_of(side)) > 1
    first = batches[0]
    plots = [(f"performance_images_{task.lower()}", f"Images a second against the batch, {task}, caches warm",
              plot_throughput(report, task)) for task in ("T224", "T32")]

    def add(name, caption, commands, missing):
        plots.append((f"performance_{name}", caption if commands else missing, commands))

    widths = "two widths with layers of their own: compare more sides"
    layered = several_widths and layer_batches
    add("bits", f"Latency against bits at batch {first}", plot_bits(report, first) if layered else None, widths)
    add("fc1_bandwidth", "Bytes of the largest layer a second against bits",
        plot_fc1_bandwidth(report, layer_batches[0]) if layered else None, widths)
    add("fc1_speed", "The largest layer against its own floats, by batch", plot_fc1_speed(report) if layered else None,
        "a side of floats and one of fewer bits: compare more sides")
    for batch in sorted({layer_batches[0], layer_batches[-1]}) if layer_batches else []:
        add(f"layers_{batch}", f"Layers' times, each alone, at batch {batch}", plot_stacked(report, batch), "")
    add("instructions", "Instructions that unpacking a weight takes, as compiled",
        plot_instructions(compiled) if compiled else None, "--compiled, the output of tests/gpu/compiled_code.sh")
    images = "accuracy: tools/bench --compare --data"
    add("accuracy_size", "Accuracy against the size of the weights",
        plot_accuracy(report, lambda side: side["weight_bytes"] / 1e6, "weights, MB"), images)
    add("accuracy_latency", f"Accuracy against latency at batch {first}, T224, caches warm",
        plot_accuracy(report, lambda side: result_of(side, "T224", first, "warm"), f"ms, batch {first}"), images)
    add("energy", "Energy of an image against the batch, T224, caches warm", plot_energy(report),
        "energy: tools/bench --compare --energy, on a GPU that counts it")
    add("training", "Test accuracy against the time of training", plot_training(trainings) if trainings else None,
        "a report of tools/finetune --json")
    add("operations", f"Latency against operations of the recorded pass, batch {first}, T224",
        plot_operations(report, first), "recorded passes, which a GPU has")
    return plots


def draw(name, commands, folder):
    script = (f"set terminal svg size 840,480 dynamic font 'sans-serif,14' background 'white'\n"
              f"set output '{name}.svg'\nset grid\n{commands}unset output\n")
    subprocess.run(["gnuplot", "-d", "-"], input=script, text=True, cwd=folder, check=True)
