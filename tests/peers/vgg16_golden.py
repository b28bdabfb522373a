#!/usr/bin/env python3
"""Makes tests/data/vgg16.safetensors and tests/data/pth/vgg16_bn_small.pth with PyTorch and torchvision.

The first holds two images of 32 x 32 pixels and the logits that torchvision's vgg16 and vgg16_bn give for them, with
weights that a hash makes: not the weights. The second is a state dict of the same layers as vgg16_bn with few channels,
as torch.save writes it, and the logits lie in the first.

    python3 tests/peers/vgg16_golden.py tests/data

With a state dict behind, which tools/export made of the second file, it is loaded into vgg16's layers instead, and has
to give the same logits.
"""

import json
import struct
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision import models, transforms

SEED = 1  # of what the hash makes
CLASSES = 10
SMALL = [2, 3, "M", 4, 5, "M", 4, 3, 7, "M", 6, 5, 7, "M", 6, 7, 5, "M"]  # channels of vgg16's layers


def hash_uniform(stream, count):
    """`count` numbers in [0, 1): the top 24 bits of splitmix64 of (stream << 32) + index."""
    with np.errstate(over="ignore"):
        z = np.arange(count, dtype=np.uint64) + np.uint64((stream << 32) + 0x9E3779B97F4A7C15 & 2**64 - 1)
        z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(40)).astype(np.float64) / 2**24


def fill(model):
    """Tensor i of the state dict, counters of batches aside: stream 1000 seed + i. Weights +-sqrt(6 / fan_in), biases
    and means +-0.05, factors and variances of batch norms 0.5 to 1.5."""
    filled = 0
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            tensor.fill_(1000)
            continue
        uniform = hash_uniform(SEED * 1000 + filled, tensor.numel()).reshape(tuple(tensor.shape))
        filled += 1
        if tensor.dim() > 1:
            values = (2 * uniform - 1) * np.sqrt(6 / tensor[0].numel())
        elif name.endswith("running_var") or (name.endswith("weight") and tensor.dim() == 1):
            values = 0.5 + uniform
        else:
            values = (2 * uniform - 1) * 0.05
        tensor.copy_(torch.from_numpy(values.astype(np.float32)))
    return model.eval()


def small_vgg16(normalised):
    layers, channels = [], 3
    for size in SMALL:
        if size == "M":
            layers.append(nn.MaxPool2d(2, 2))
            continue
        layers.append(nn.Conv2d(channels, size, 3, padding=1))
        layers += [nn.BatchNorm2d(size), nn.ReLU()] if normalised else [nn.ReLU()]
        channels = size
    model = models.VGG(nn.Sequential(*layers), num_classes=CLASSES, init_weights=False)
    model.classifier = nn.Sequential(nn.Linear(channels * 49, 13), nn.ReLU(), nn.Dropout(), nn.Linear(13, 11),
                                     nn.ReLU(), nn.Dropout(), nn.Linear(11, CLASSES))
    return model


def prepared(pixels, resize, crop):
    """As nibblenet prepares them: resized and cropped unless they have the input's size."""
    steps = [] if resize == pixels.shape[1] else [transforms.Resize(resize), transforms.CenterCrop(crop)]
    steps += [transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    return torch.stack([transforms.Compose(steps)(Image.fromarray(image)) for image in pixels])


def write_safetensors(path, tensors, metadata):
    header, data = {"__metadata__": metadata}, b""
    for name, array in tensors.items():
        begin = len(data)
        data += array.tobytes()
        dtype = {"uint8": "U8", "float32": "F32", "float64": "F64"}[str(array.dtype)]
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [begin, len(data)]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def read_safetensors(path, name):
    raw = path.read_bytes()
    begin = 8 + struct.unpack("<Q", raw[:8])[0]
    entry = json.loads(raw[8:begin])[name]
    first, last = (begin + offset for offset in entry["data_offsets"])
    return np.frombuffer(raw[first:last], {"U8": np.uint8, "F32": np.float32}[entry["dtype"]]).reshape(entry["shape"])


def check(folder, exported):
    """Whether torchvision's layers without batch norms take what `tools/export` made of the second file."""
    model = small_vgg16(False)
    model.load_state_dict(torch.load(exported))
    with torch.no_grad():
        logits = model.eval()(prepared(read_safetensors(folder / "vgg16.safetensors", "u8_nhwc"), 32, 32)).numpy()
    expected = read_safetensors(folder / "vgg16.safetensors", "logits_small_bn_32")
    error = np.linalg.norm(logits - expected) / np.linalg.norm(expected)
    print(f"relative error {error:.2g}")
    sys.exit(0 if error <= 1e-4 else 1)


def main():
    folder = Path(sys.argv[1])
    if len(sys.argv) > 2:
        check(folder, sys.argv[2])
    torch.manual_seed(0)
    pixels = (256 * hash_uniform(SEED, 2 * 32 * 32 * 3)).astype(np.uint8).reshape(2, 32, 32, 3)
    tensors = {"u8_nhwc": pixels}
    with torch.no_grad():
        small = fill(small_vgg16(True))
        tensors["logits_small_bn_32"] = small(prepared(pixels, 32, 32)).numpy()
        torch.save(small.state_dict(), folder / "pth" / "vgg16_bn_small.pth")
        for name in ("vgg16", "vgg16_bn"):
            model = fill(getattr(models, name)(num_classes=CLASSES))
            sums = [value.double().sum().item() for key, value in model.state_dict().items()
                    if not key.endswith("num_batches_tracked")]
            tensors[f"weight_sums_{name}"] = np.array(sums)
            tensors[f"logits_{name}_32"] = model(prepared(pixels, 32, 32)).numpy()
            tensors[f"logits_{name}_224"] = model(prepared(pixels[:1], 256, 224)).numpy()
    metadata = {"seed": str(SEED), "torch": torch.__version__, "made_by": "tests/peers/vgg16_golden.py",
                "recipe": " ".join(fill.__doc__.split()) + " " + " ".join(hash_uniform.__doc__.split())}
    write_safetensors(folder / "vgg16.safetensors", tensors, metadata)


if __name__ == "__main__":
    main()
