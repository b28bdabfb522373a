"""What others make of the same weights: NNC (nncodec), NF4 (bitsandbytes), GPTQ and CERWU.

usage: encode_with_peers.py MODEL.safetensors FOLDER [--calibration FILE] [--cerwu FOLDER] [--only NAME ...]

Every peer's weights, decoded to float32, go to FOLDER/<name>.safetensors, so that our own eval measures all of them on
the same images; FOLDER/peers.json gets bytes and seconds of processor time. Peers that are there already are left alone.

nnc-<qp>   the ISO/IEC 15938-17 reference coder with its own defaults at that quantization parameter; bytes of its stream
nf4        bitsandbytes' quantize_4bit as its Linear4bit calls it: blocks of 64, their maxima quantized to 8 bits; bytes of
           its tensors
gptq-<n>   GPTQ (Frantar 2023, algorithm 1) as published, in PyTorch, since its packages are made for language models on
           GPUs: blocks of 128 columns, damping 1 %, natural order, asymmetric min-max grid of each output channel;
           convolutions as matrices of im2col rows; bytes of n-bit codes, a float32 scale and a zero point a channel. Its
           Hessians are what `tools/pack --save-calibration FILE` has written.
cerwu<e>   CERWU (Conzelmann and Bamler, arXiv 2505.18758) for lambda = 10^e, on the same Hessians, as its repository sets
           it up: 16 bins, one grid a layer, whole-layer matrices. Its compiled module `_core` does the rounding; it lies
           in the folder of --cerwu (README.md says how to build it). Bytes are what its own model of DeepCABAC's rate
           says, and a step a layer: its coder's stream is not written. Takes a quarter of an hour.
"""

import argparse
import json
import math
import pathlib
import sys
import tempfile
import time

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file


def is_weight(value):
    return value.ndim > 1


def float32_bytes_of_biases(weights):
    return sum(4 * value.size for value in weights.values() if not is_weight(value))


def nnc(qp):
    def run(weights, _):
        from nncodec import nn as nncodec

        with tempfile.TemporaryDirectory() as folder:
            settings = {"qp": qp, "results": folder, "verbose": False}
            start = time.process_time()
            stream = nncodec.encode(dict(weights), settings)
            encoded = time.process_time()
            decoded = nncodec.decode(stream)
        return decoded, len(stream), encoded - start, time.process_time() - encoded

    return run


def nf4(weights, _):
    from bitsandbytes import functional

    decoded, total, encode_seconds, decode_seconds = dict(weights), float32_bytes_of_biases(weights), 0.0, 0.0
    for name, value in weights.items():
        if not is_weight(value):
            continue
        start = time.process_time()
        codes, state = functional.quantize_4bit(
            torch.from_numpy(value), blocksize=64, quant_type="nf4", compress_statistics=True)
        encoded = time.process_time()
        decoded[name] = functional.dequantize_4bit(codes, state).numpy()
        decode_seconds += time.process_time() - encoded
        encode_seconds += encoded - start
        parts = (codes, state.absmax, state.state2.absmax, state.state2.code, state.code, state.offset)
        total += sum(part.numel() * part.element_size() for part in parts)
    return decoded, total, encode_seconds, decode_seconds


def read_hessian(file, name, inputs):
    """The file holds the rows of the upper triangle, one behind the other."""
    triangle, matrix, first = file.get_tensor(name), np.empty((inputs, inputs), np.float32), 0
    for row in range(inputs):
        matrix[row, row:] = matrix[row:, row] = triangle[first:first + inputs - row]
        first += inputs - row
    return torch.from_numpy(matrix)


def inverse_factor(hessian):
    """The upper Cholesky factor of the damped inverse."""
    hessian.diagonal().add_(0.01 * hessian.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    return torch.linalg.cholesky(inverse, upper=True)


def gptq_matrix(weights, hessian, bits):
    """weights[K, D] rounded column by column, the error of each spread over those behind it."""
    weights = weights.clone()
    dead = hessian.diagonal() == 0
    hessian.diagonal()[dead] = 1
    weights[:, dead] = 0
    largest = 2**bits - 1
    low, high = weights.amin(1).clamp(max=0), weights.amax(1).clamp(min=0)
    step = ((high - low) / largest).clamp(min=1e-12)
    zero = torch.round(-low / step)
    factor = inverse_factor(hessian)
    for first in range(0, weights.shape[1], 128):
        last = min(first + 128, weights.shape[1])
        block, corner = weights[:, first:last], factor[first:last, first:last]
        errors = torch.zeros_like(block)
        for i in range(last - first):
            rounded = step * (torch.clamp(torch.round(block[:, i] / step) + zero, 0, largest) - zero)
            errors[:, i] = (block[:, i] - rounded) / corner[i, i]
            block[:, i + 1:] -= torch.outer(errors[:, i], corner[i, i + 1:])
            block[:, i] = rounded
        weights[:, last:] -= errors @ factor[first:last, last:]
    return weights


def by_hessians(round_matrix):
    """A peer that rounds weight by weight: round_matrix(weights[K, D], hessian[D, D], name) gives them and their bytes."""

    def run(weights, calibration):
        decoded, total, seconds = dict(weights), float32_bytes_of_biases(weights), 0.0
        with safe_open(calibration, "np") as file:
            for name, value in weights.items():
                if not is_weight(value):
                    continue
                matrix = torch.from_numpy(value).reshape(len(value), -1)
                hessian = read_hessian(file, name, matrix.shape[1])
                start = time.process_time()
                rounded, size = round_matrix(matrix, hessian, name)
                seconds += time.process_time() - start
                decoded[name] = rounded.reshape(value.shape).numpy()
                total += size
        return decoded, total, seconds, None

    return run


def gptq(bits):
    def round_matrix(weights, hessian, _):
        return gptq_matrix(weights, hessian, bits), weights.numel() * bits // 8 + len(weights) * (4 + 1)

    return by_hessians(round_matrix)


def cerwu_matrix(weights, hessian, exponent):
    """weights[K, D] rounded, and the bits of the indices by the rate model."""
    import _core

    bins, rate_weight = 16, np.float32(10.0**exponent)
    dead = hessian.diagonal() == 0
    hessian.diagonal()[dead] = 1
    hessian.diagonal().add_(0.01 * hessian.diagonal().mean())
    per_step = bins // 2 / weights.abs().max()
    scaled = weights * per_step
    # The prior of the rate: a normal distribution's quadratic term, taken out of the rate and into
    # the Hessian.
    gamma = float(1 / (math.log(2) * torch.var(scaled)))
    hessian /= per_step**2
    regularised = hessian.clone()
    regularised.diagonal().add_(gamma * rate_weight)
    target = scaled @ (hessian @ torch.inverse(regularised))
    options = {"max_idx": bins, "entropy_model": "regularized", "scan_order_major": "row",
               "entropy_model_options": {"base_model": "deepcabac", "max_idx": bins // 2, "gamma": gamma}}
    indices = _core.GPTQ(options).run(target.contiguous().numpy(), inverse_factor(regularised).contiguous().numpy(),
                                      rate_weight)
    bits = _core.EntropyModel("deepcabac", indices, {"max_idx": bins}).estimate_tensor(indices)
    return torch.from_numpy(indices).float() / per_step, bits


def cerwu(exponent):
    output_pixels = {"features.0": 55 * 55, "features.3": 27 * 27, **{f"features.{n}": 13 * 13 for n in (6, 8, 10)}}

    def round_matrix(weights, hessian, name):
        # Of an image's squared error: ours is of one output pixel's, and without the factor 2.
        hessian *= 2 * output_pixels.get(name.removesuffix(".weight"), 1)
        rounded, bits = cerwu_matrix(weights, hessian, exponent)
        return rounded, math.ceil(bits / 8) + 4

    return by_hessians(round_matrix)


PEERS = {f"nnc{qp}": nnc(qp) for qp in (-28, -24, -20)} | {"nf4": nf4} | {f"gptq-{n}": gptq(n) for n in (4, 3)}
PEERS |= {f"cerwu{exponent}": cerwu(exponent) for exponent in (-6.6, -6)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--calibration")
    parser.add_argument("--cerwu", help="folder of CERWU's compiled module; without it its rows are left out")
    parser.add_argument("--only", nargs="+", choices=PEERS, default=list(PEERS))
    arguments = parser.parse_args()
    if arguments.cerwu:
        sys.path.insert(0, arguments.cerwu)
    else:
        arguments.only = [name for name in arguments.only if not name.startswith("cerwu")]
    with safe_open(arguments.model, "np") as file:
        metadata = file.metadata()
    weights = {name: value.astype(np.float32) for name, value in load_file(arguments.model).items()}
    arguments.folder.mkdir(parents=True, exist_ok=True)
    list_file = arguments.folder / "peers.json"
    done = json.loads(list_file.read_text()) if list_file.exists() else {}
    for name in arguments.only:
        if name in done:
            continue
        if name.startswith(("gptq", "cerwu")) and not arguments.calibration:
            parser.error(f"{name} needs --calibration FILE")
        decoded, total, encode, decode = PEERS[name](weights, arguments.calibration)
        for key, value in weights.items():
            if decoded[key].shape != value.shape:
                raise SystemExit(f"{name}: {key} came back as {decoded[key].shape}, not {value.shape}")
        save_file({key: np.ascontiguousarray(decoded[key], np.float32) for key in weights},
                  arguments.folder / f"{name}.safetensors", metadata)
        count = sum(value.size for value in weights.values() if is_weight(value))
        done[name] = {"bytes": total, "bits_per_weight": 8 * total / count, "encode_seconds": encode,
                      "decode_seconds": decode}
        list_file.write_text(json.dumps(done, indent=2) + "\n")
        print(name, done[name], flush=True)


main()
