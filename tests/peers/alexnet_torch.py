"""The network that nibblenet runs, in PyTorch, from the same file."""

import json
import struct
import sys

import numpy as np
import torch
from torch import nn


def read_safetensors(path):
    """Name -> float32 array, from a file of F32 or F16 tensors."""
    with open(path, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        data = file.read()
    header.pop("__metadata__", None)
    types = {"F32": np.float32, "F16": np.float16}
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] not in types:
            sys.exit(f"{path}: {name} is {entry['dtype']}, expected F32 or F16; give the float model here")
        begin, end = entry["data_offsets"]
        array = np.frombuffer(data[begin:end], types[entry["dtype"]]).reshape(entry["shape"])
        tensors[name] = array.astype(np.float32)
    return tensors


def alexnet(tensors):
    """torchvision's AlexNet; the sizes of its layers are those of the file."""
    windows = [(0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1)]  # index, stride, padding
    features = []
    for index, stride, padding in windows:
        outputs, inputs, kernel, _ = tensors[f"features.{index}.weight"].shape
        features += [nn.Conv2d(inputs, outputs, kernel, stride, padding), nn.ReLU(inplace=True)]
        if index in (0, 3, 10):
            features.append(nn.MaxPool2d(3, 2))

    def linear(index):
        outputs, inputs = tensors[f"classifier.{index}.weight"].shape
        return nn.Linear(inputs, outputs)

    model = nn.Sequential()
    model.add_module("features", nn.Sequential(*features))
    model.add_module("pool", nn.AdaptiveAvgPool2d((6, 6)))
    model.add_module("flatten", nn.Flatten())
    model.add_module("classifier", nn.Sequential(nn.Dropout(), linear(1), nn.ReLU(inplace=True), nn.Dropout(),
                                                 linear(4), nn.ReLU(inplace=True), linear(6)))
    model.load_state_dict({name: torch.from_numpy(array) for name, array in tensors.items()})
    return model.eval()
