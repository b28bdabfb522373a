#!/usr/bin/env python3
"""Training on ranks under mpirun beside training in one process on as many threads: images a second, in one run, turn
about.

    python3 tests/peers/compare_ranks.py --rounds 3 --json build/ranks.json

Sides take turns within each round, in an order that rotates. Each measurement is a process, or a job, of its own: two
epochs, of which the second counts. Evaluation, start-up and the first epoch's memory are timed for no side. This script
needs nothing but Python, `mpirun` and the tools that are built. --prefix "chrt -r 10" puts other work on the machine off
until a process has ended.
"""

import argparse
import json
import os
import pathlib
import shlex
import statistics
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
REFERENCE = "1 process, 2 threads"
# Ranks (0: without mpirun) and what is added to the command.
SIDES = {
    REFERENCE: (0, ["--threads", "2"]),
    "1 process, 2 threads, --blocks 32": (0, ["--threads", "2", "--blocks", "32"]),
    "2 ranks, 1 thread each": (2, ["--threads", "1"]),
    "2 ranks, 1 thread each, --reduce fast": (2, ["--threads", "1", "--reduce", "fast"]),
}


def images_a_second(arguments, ranks, options, folder):
    """The last epoch's images a second."""
    report = folder / "report.json"
    command = shlex.split(arguments.prefix)
    if ranks:
        command += ["mpirun", "-n", str(ranks), "--bind-to", "none"]
    command += [ROOT / "tools" / "finetune", "--data", arguments.data, "--init", "random", "--freeze", arguments.freeze,
                "--batch", "128", "--epochs", "2", "--train-limit", str(arguments.images), "--test-limit", "10",
                "--seed", "1", "--out", folder / "out.safetensors", "--force", "--json", report, *options]
    environment = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    done = subprocess.run([str(word) for word in command], env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}:\n{done.stderr}")
    return json.loads(report.read_text())["epochs"][-1]["images_per_second"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=ROOT / "data", help="images, as of tools/finetune")
    parser.add_argument("--images", type=int, default=256, help="training images of an epoch")
    parser.add_argument("--freeze", choices=("none", "features"), default="none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prefix", default="", help="what every process is started by")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), metavar="SIDE")
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    results = {name: [] for name in arguments.sides}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(arguments.rounds):
            order = arguments.sides[turn % len(arguments.sides):] + arguments.sides[:turn % len(arguments.sides)]
            for name in order:
                results[name].append(images_a_second(arguments, *SIDES[name], pathlib.Path(folder)))
                print(f"round {turn + 1}: {name}: {results[name][-1]:.2f} images/s", flush=True)
    print(f"\n| --freeze {arguments.freeze} | images/s | smallest to largest | of {REFERENCE} |\n|---|---:|---:|---:|")
    for name, values in results.items():
        ratios = [one / other for one, other in zip(values, results.get(REFERENCE, []))]
        part = f"{statistics.median(ratios):.3f}" if ratios else ""
        print(f"| {name} | {statistics.median(values):.2f} | {min(values):.2f} to {max(values):.2f} | {part} |")
    if arguments.json:
        arguments.json.write_text(json.dumps({"freeze": arguments.freeze, "images_per_second": results}, indent=1))


if __name__ == "__main__":
    main()
