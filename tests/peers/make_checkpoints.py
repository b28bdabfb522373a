#!/usr/bin/env python3
"""Writes the checkpoints of tests/data/checkpoints with PyTorch: what training scripts save.

    pip install torch numpy; tests/peers/make_checkpoints.py tests/data/checkpoints

Every file that a network can be read from holds the same four tensors under one name or another:
element i of tensor t is 100 t + i, and 1000 more where the weights are averaged ones. The tests
need no PyTorch: tests/layers/network/foreign_names_test.cpp reads the files.
"""
import argparse
import collections
import datetime
import enum
import os
import pathlib
import random
import sys

import numpy as np
import torch

SHAPES = {
    "features.0.weight": (2, 3, 2, 2),
    "features.0.bias": (2,),
    "classifier.1.weight": (3, 2),
    "classifier.1.bias": (3,),
}


def weights(prefix="", offset=0.0, dtype=torch.float32, rename=lambda name: name):
    state = collections.OrderedDict()
    for t, (name, shape) in enumerate(SHAPES.items()):
        count = int(np.prod(shape))
        values = torch.arange(count, dtype=torch.float32).reshape(shape) + 100 * t + offset
        state[prefix + rename(name)] = values.to(dtype)
    return state


class Phase(enum.Enum):
    TRAIN = 1
    TEST = 2


class Config(dict):
    """As EasyDict, CfgNode and others are: a dict of a class of its own."""


class Outer:
    class Inner(enum.Enum):
        A = "a"


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.features = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 2))
        self.classifier = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(2, 3))
        with torch.no_grad():
            for parameter, value in zip(self.parameters(), weights().values()):
                parameter.copy_(value)

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


def optimizer_state(make):
    net = Net()
    optimizer = make(net.parameters())
    net(torch.ones(1, 3, 2, 2)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def in_the_name(name):
    stem, rest = name.split(".", 1)
    return f"{stem}.module.{rest}"


def with_scalars():
    state = weights()
    for name in ("total_ops", "total_params", "features.0.total_ops", "features.0.total_params"):
        state[name] = torch.tensor([123456789.0], dtype=torch.float64)
    state["n_averaged"] = torch.tensor(123456789)
    state["features.1.num_batches_tracked"] = torch.tensor(1 << 40)
    return state


def beside_each_other(**groups):
    state = collections.OrderedDict()
    for prefix, offset in groups.items():
        state.update(weights(prefix.replace("__", ".") + ".", offset))
    return state


def write(folder):
    def save(name, what, **options):
        torch.save(what, folder / f"{name}.pth", **options)

    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    for prefix in ("module", "_orig_mod", "_orig_mod.module", "module._orig_mod", "module.module", "model", "net",
                   "backbone", "encoder", "model.backbone", "module.model.module"):
        save("prefix_" + prefix.replace(".", "-"), weights(prefix + "."))
    save("inside_the_name", weights(rename=in_the_name))
    save("prefix_and_inside", weights("module.", rename=in_the_name))
    save("two_prefixes", {("backbone." if "features" in name else "head.") + name: value
                          for name, value in weights().items()})
    save("plain_dict", dict(weights()))
    save("float16", weights(dtype=torch.float16))
    save("scalars", with_scalars())

    for protocol in (2, 3, 4, 5):
        save(f"protocol_{protocol}", {"state_dict": weights(), "epoch": 7, "numbers": {1, 2}, "bytes": b"\0\xff",
                                      "large": 1 << 80, "array": np.arange(4)}, pickle_protocol=protocol)
        save(f"legacy_protocol_{protocol}", {"state_dict": weights(), "epoch": 7},
             pickle_protocol=protocol, _use_new_zipfile_serialization=False)

    save("ema_model_ema", {"model": weights(), "model_ema": weights(offset=1000)})
    save("ema_state_dict", {"state_dict": weights(), "ema_state_dict": weights(offset=1000)})
    save("ema_timm", {"state_dict": weights(), "state_dict_ema": weights("module.", 1000), "arch": "alexnet"})
    save("ema_prefixes", beside_each_other(model=0, model_ema=1000))
    save("ema_only", {"model_ema": weights(offset=1000)})
    save("swa", {"n_averaged": torch.tensor(5), **weights("module.")})
    save("students", beside_each_other(student=0, teacher=1000))

    arguments = argparse.Namespace(lr=0.1, data=pathlib.PurePosixPath("/data"), phase=Phase.TRAIN, sizes=(1, 2))
    save("namespace", {"model": weights(), "args": arguments})
    save("numpy", {"model": weights(), "accuracy": np.float64(0.5), "count": np.int64(3), "flag": np.bool_(True),
                   "history": np.linspace(0, 1, 3), "dtype": np.dtype("float32"), "best": np.float32(1)})
    save("containers", {"model": weights(), "set": {1, "a"}, "frozen": frozenset("ab"), "slice": slice(1, 2),
                        "range": range(3), "complex": 1j, "bytearray": bytearray(b"ab"), "deque": collections.deque([1]),
                        "default": collections.defaultdict(list, a=[1]), "counter": collections.Counter("aab"),
                        "config": Config(lr=1), "nested": {"a": {"b": [1, (2, None)]}}})
    save("times", {"model": weights(), "date": datetime.date(2024, 1, 2), "elapsed": datetime.timedelta(seconds=1.5),
                   "time": datetime.datetime(2024, 1, 2, 3, 4, 5, 6, datetime.timezone.utc)})
    save("random_states", {"model": weights(), "python": random.getstate(), "torch": torch.get_rng_state()[:64],
                           "numpy": np.random.get_state()[:1] + (np.random.get_state()[1][:8],)})
    save("torch_objects", {"model": weights(), "dtype": torch.float16, "device": torch.device("cpu"),
                           "size": torch.Size([1, 2])})
    save("enums", {"model": weights(), "phase": Phase.TEST, "inner": Outer.Inner.A, "class": Phase, "function": write})
    save("sgd", {"model": weights(), "optimizer": optimizer_state(lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)),
                 "epoch": 3})
    save("adam", {"state_dict": weights(), "optimizer": optimizer_state(torch.optim.Adam),
                  "scheduler": {"last_epoch": 1, "_last_lr": [0.1]}})
    save("lightning", {"epoch": 1, "global_step": 2, "pytorch-lightning_version": "2.0", "loops": {}, "callbacks": {},
                       "state_dict": weights("model."), "hyper_parameters": arguments, "hparams_name": "kwargs"})
    save("own_dict_class", Config(weights()))
    save("parameters", {name: torch.nn.Parameter(value) for name, value in weights().items()})
    tagged = weights()
    tagged["features.0.bias"] = torch.nn.Parameter(tagged["features.0.bias"])
    tagged["features.0.bias"].tag = "an attribute"
    save("attributes", tagged)
    save("views", {name: torch.cat([value.flatten(), torch.zeros(3)])[:value.numel()].view(value.shape)
                   for name, value in weights().items()})
    # Refused: nothing that a reader without the source code could take.
    save("refused_module", Net())
    save("refused_module_inside", {"model": Net(), "epoch": 1})
    quantized = weights()
    quantized["classifier.1.weight"] = torch.quantize_per_tensor(quantized["classifier.1.weight"], 1.0, 0, torch.qint8)
    save("refused_quantized", quantized)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    folder = parser.parse_args().folder
    os.makedirs(folder, exist_ok=True)
    write(folder)
    print(sum(path.stat().st_size for path in folder.iterdir()), "bytes with PyTorch", torch.__version__)


if __name__ == "__main__":
    sys.exit(main())
