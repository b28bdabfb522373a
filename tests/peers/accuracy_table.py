"""Accuracy per byte of our packed models and of what encode_with_peers.py wrote, on the same images, as Markdown.

usage: accuracy_table.py REPORT.json [--peers FOLDER --model MODEL --data DATA --limit N] [--write docs/accuracy.md]

REPORT.json is a sweep's (tools/sweep MODEL --preset frontier). With --peers, tools/eval measures each of them once; what
it found stays in FOLDER. With --write, the tables replace what stands between their markers in that file.
"""

import argparse
import json
import math
import pathlib
import re
import subprocess
import sys

import numpy as np
from safetensors.numpy import load_file

EVAL = pathlib.Path(__file__).resolve().parents[2] / "tools" / "eval"


def measured(model, folder, arguments):
    """Per image: whether it is right; and the mean cross-entropy."""
    file = folder / f"logits_{pathlib.Path(model).stem}_{arguments.limit}.safetensors"
    if not file.exists():
        subprocess.run([EVAL, model, "--data", arguments.data, "--limit", str(arguments.limit), "--logits", file],
                       check=True, stdout=sys.stderr)
    found = load_file(file)
    logits, labels = found["logits"].astype(np.float64), found["labels"]
    shifted = logits - logits.max(1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(labels)), labels]
    return logits.argmax(1) == labels, losses.mean()


def mcnemar(a, b):
    both = a + b
    tail = sum(math.exp(math.lgamma(both + 1) - math.lgamma(k + 1) - math.lgamma(both - k + 1) - both * math.log(2))
               for k in range(min(a, b) + 1))
    return min(1.0, 2 * tail)


def table(columns, rows):
    lines = ["| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(line.replace("[", "\\[").replace("*", "\\*") for line in lines) + "\n"


def p_text(p):
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}"


def file_bytes(row):
    """Bytes of a row's file, and of its smallest one; reports before 0.2 called a file's size `rest`."""
    size = row["size"].get("file", row["size"].get("rest"))
    return size, min(size, row.get("compressed_file", row.get("compressed_rest")) or size)


def fronts_of(scheme, fronts):
    files = fronts.get("file", fronts.get("rest", []))
    return [name for name, schemes in (("resident", fronts["resident"]), ("file", files)) if scheme in schemes]


def our_table(report):
    fronts, weights = report["fronts"], report["setup"]["weights"]
    rows = []
    for row in report["results"]:
        if row["size"] is None:
            continue
        size, is_float = row["size"], row["scheme"].startswith("float")
        plain, smallest = file_bytes(row)
        rows.append([row["scheme"], f"{size['bits_per_weight']:.3f}", f"{size['resident']['total'] / 1e6:.2f}",
                     f"{plain / 1e6:.2f}", f"{smallest / 1e6:.2f}", f"{4 * weights / smallest:.1f}×",
                     f"{100 * row['accuracy']:.2f}", f"{row['loss']:.4f}",
                     "" if is_float else f"−{row['only_float']} +{row['only_this']}",
                     "" if is_float else p_text(row["mcnemar_p"]),
                     ", ".join(fronts_of(row["scheme"], fronts))])
    return table(["packed by", "bits/weight", "resident MB", "file MB", "smallest file MB", "against float32",
                  "accuracy %", "cross-entropy", "−a +b", "McNemar p", "front"], rows)


def seconds(value):
    """Of processor time."""
    return "–" if value is None else f"{value:.2f}" if value < 10 else f"{value:.0f}"


def peers_table(report, arguments):
    peers = json.loads((arguments.peers / "peers.json").read_text())
    weights = report["setup"]["weights"]
    float_right, _ = measured(arguments.model, arguments.peers, arguments)
    rows = []
    for name, peer in peers.items():
        right, loss = measured(arguments.peers / f"{name}.safetensors", arguments.peers, arguments)
        lost, won = int((float_right & ~right).sum()), int((~float_right & right).sum())
        rows.append((peer["bytes"], [name, right.mean(), loss, lost, won, mcnemar(lost, won), peer["encode_seconds"],
                                     peer["decode_seconds"]]))
    for row in report["results"]:
        if row.get("compressed_file", row.get("compressed_rest")) is None:
            continue
        packing = row["encode_seconds"] if row["method"] == "pack" else None
        rows.append((file_bytes(row)[1], ["ours: " + row["scheme"], row["accuracy"], row["loss"], row["only_float"],
                                          row["only_this"], row["mcnemar_p"], packing, row["decode_seconds"]]))
    return table(["", "MB", "bits/weight", "accuracy %", "cross-entropy", "−a +b", "McNemar p", "encode s", "decode s"],
                 [[name, f"{total / 1e6:.2f}", f"{8 * total / weights:.3f}", f"{100 * accuracy:.2f}", f"{loss:.4f}",
                   f"−{lost} +{won}", p_text(p), seconds(encode), seconds(decode)]
                  for total, (name, accuracy, loss, lost, won, p, encode, decode) in sorted(rows, key=lambda r: -r[0])])


def replace(text, name, content):
    pattern = re.compile(rf"(<!-- {name}: .*?-->\n).*?(<!-- end of {name} -->)", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        sys.exit(f"expected one pair of markers of {name}")
    return pattern.sub(lambda found: found[1] + content + found[2], text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=pathlib.Path)
    parser.add_argument("--peers", type=pathlib.Path)
    parser.add_argument("--model")
    parser.add_argument("--data")
    parser.add_argument("--limit", type=int, default=0)
    parser.add_argument("--write", type=pathlib.Path)
    arguments = parser.parse_args()
    report = json.loads(arguments.report.read_text())
    setup = report["setup"]
    title = (f"{setup['images']:,} {setup['split']} images of {setup['data_description']}, {setup['device']}, "
             f"{setup['threads']} threads, {setup['precision']}.\n\n")
    tables = {"frontier": title + our_table(report)}
    if arguments.peers:
        if not (arguments.model and arguments.data):
            parser.error("--peers needs --model and --data")
        tables["peers"] = title + peers_table(report, arguments)
    for name, content in tables.items():
        print(content)
        if arguments.write:
            arguments.write.write_text(replace(arguments.write.read_text(), name, content))


main()
