"""What the figures of `tools/bench --compare --json` say: by side, task, batch and layer."""

import re


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


def operations_of(side, task, batch):
    """Of the recorded pass, or None."""
    return next((result.get("operations") for result in side["results"]
                 if (result["task"], result["batch"]) == (task, batch)), None)


def batches_of(sides):
    return sorted({result["batch"] for side in sides for result in side["results"]})


def peak_of(precision, ceilings):
    """Operations a second of large products in a precision; where there is none of its own, the next one's."""
    others = {"bfloat16": ["float16"]}.get(precision, [])
    for name in [precision, *others, "float32"]:
        if rate := ceilings.get(f"{name}_teraflops"):
            return 1e12 * rate
    raise KeyError("the ceilings have no float32_teraflops")


def layer_floor_ms(layer, side, ceilings):
    peak = peak_of(layer.get("precision", side["activations"]), ceilings)
    return 1e3 * max(layer["flops"] / peak, layer["bytes"] / (1e9 * ceilings["gigabytes_per_second"]))


def floor_ms(side, batch, ceilings):
    """What the layers take at least, one after the other, at the ceilings that were measured; None without layers."""
    layers = [layer for layer in side["layers"] if layer["batch"] == batch]
    return sum(layer_floor_ms(layer, side, ceilings) for layer in layers) if layers else None


def layer_rank(name):
    group, index = name.replace("+pool", ".5").split(".", 1)
    return (group != "features", float(index))


def read_compiled(text):
    """What tests/gpu/compiled_code.sh prints of instructions a weight; None where it printed nothing of the kind."""
    pattern = r"^(\w+) +(\d) bits: linear ([\d.]+) \(designed ([\d.]+), at most ([\d.]+)\), others ([\d.]+)"
    rows = [{"architecture": architecture, "bits": int(bits), "linear": float(linear), "designed": float(designed),
             "most": float(most), "others": float(others)}
            for architecture, bits, linear, designed, most, others in re.findall(pattern, text, re.MULTILINE)]
    return {"instructions": rows} if rows else None
