"""PyTorch's predictions on a model that nibblenet exported beside nibblenet's own, image by image.

usage: compare_predictions.py MODEL.pth IMAGES LOGITS.safetensors

IMAGES holds test/<class>/*.png and LOGITS is what `tools/eval MODEL.pth --data IMAGES --logits LOGITS.safetensors`
wrote. PNG, since decoders of JPEG differ in their last bits. Fails when one prediction differs.
"""

import pathlib
import sys

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import load_file
from torch import nn

CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck".split()
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)


class AlexNet(nn.Module):
    """torchvision's, with a classifier of whatever sizes the state dict has."""

    def __init__(self, state):
        super().__init__()

        def conv(c, k, size, stride, padding):
            return [nn.Conv2d(c, k, size, stride, padding), nn.ReLU()]

        def linear(name):
            k, c = state[f"classifier.{name}.weight"].shape
            return nn.Linear(c, k)

        self.features = nn.Sequential(
            *conv(3, 64, 11, 4, 2), nn.MaxPool2d(3, 2), *conv(64, 192, 5, 1, 2), nn.MaxPool2d(3, 2),
            *conv(192, 384, 3, 1, 1), *conv(384, 256, 3, 1, 1), *conv(256, 256, 3, 1, 1), nn.MaxPool2d(3, 2))
        self.pool = nn.AdaptiveAvgPool2d(6)
        self.classifier = nn.Sequential(
            nn.Dropout(), linear(1), nn.ReLU(), nn.Dropout(), linear(4), nn.ReLU(), linear(6))

    def forward(self, x):
        return self.classifier(torch.flatten(self.pool(self.features(x)), 1))


def prepare(path):
    image = Image.open(path).convert("RGB").resize((256, 256), Image.BILINEAR).crop((16, 16, 240, 240))
    return ((np.asarray(image, np.float32) / 255 - MEAN) / DEVIATION).transpose(2, 0, 1)


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    state = torch.load(sys.argv[1], weights_only=True)
    network = AlexNet(state)
    network.load_state_dict(state)
    network.eval()
    ours = load_file(sys.argv[3])
    paths = [path for name in CIFAR10 for path in sorted((pathlib.Path(sys.argv[2]) / "test" / name).glob("*.png"))]
    if len(paths) != len(ours["logits"]):
        sys.exit(f"{len(paths)} images, but logits of {len(ours['logits'])}")
    with torch.inference_mode():
        theirs = np.concatenate([
            network(torch.from_numpy(np.stack([prepare(path) for path in paths[first:first + 50]]))).numpy()
            for first in range(0, len(paths), 50)])
    same = theirs.argmax(1) == ours["logits"].argmax(1)
    right = [(logits.argmax(1) == ours["labels"]).sum() for logits in (theirs, ours["logits"])]
    print(f"{same.sum()} of {len(paths)} predictions are the same; right: PyTorch {right[0]}, nibblenet {right[1]}; "
          f"largest difference of logits {np.abs(theirs - ours['logits']).max():.2g}")
    sys.exit(0 if same.all() else 1)


main()
