"""What the notebooks of this folder share: the network, the images, a table."""

import os
from pathlib import Path

import nibblenet
import numpy as np

os.environ.setdefault("NIBBLENET_ROOT", str(Path(__file__).resolve().parents[2]))  # its data/ is searched
SHIPPED = Path(os.environ["NIBBLENET_ROOT"]) / "weights" / "alexnet-cifar10.safetensors"
MODEL = os.environ.get("NIBBLENET_MODEL") or SHIPPED
DATA = os.environ.get("NIBBLENET_DATA")  # None: data/, else a download
LIMIT = int(os.environ.get("NIBBLENET_LIMIT", 200))


def float_model():
    """A float32 network, as it is after training: NIBBLENET_MODEL's, or the shipped one's.

    The shipped model is packed. A study of rounding needs weights that are not rounded, so each of
    its weights is moved at random within half a step of its code, up or down.
    """
    model = nibblenet.load(MODEL)
    if not isinstance(model, nibblenet.PackedModel):
        return model
    random = np.random.default_rng(1)
    state = model.dequantize()
    for name, weights in state.items():
        if weights.ndim > 1:
            for channel in weights:  # views: the values of one scale
                values = np.unique(channel)
                step = np.diff(values).min() if values.size > 1 else 0
                channel += step * random.uniform(-0.5, 0.5, channel.shape).astype(np.float32)
    return nibblenet.Model.of(state)


def show(rows):
    """A line a row of nibblenet.sweep.

    -a +b: the images that only float, and only this one, gets right; p: McNemar's exact test of
    that pair. A simulated scheme has no size, but the bits that the values of a row need.
    """
    for row in rows:
        size = f"{row['needed_bits']} bits needed" if row["needed_bits"] else f"{row['resident_bytes'] / 1e6:.3f} MB"
        print(f"{row['scheme']:<32} {100 * row['accuracy']:6.2f} %  -{row['only_float']} +{row['only_this']}  "
              f"p {row['mcnemar_p']:.4f}  {size}")
