#!/usr/bin/env python3
"""Writes the small batches of tests/data/cifar10_python: CIFAR-10's Python version as different
programs pickle it, and the same images in the binary version.

    pip install 'numpy>=2'; tests/peers/make_cifar_pickles.py tests/data/cifar10_python

The tests need no NumPy: tests/engine/io/cifar10_python_test.cpp reads the files.
"""
import pathlib
import pickle
import random
import struct
import sys

import numpy as np

LABELS = [6, 9]
NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def python2(value):
    """The opcodes that Python 2's cPickle writes in protocol 2, for what CIFAR-10's files hold."""
    if isinstance(value, str):
        return b"U" + bytes([len(value)]) + value.encode()
    if isinstance(value, int):
        return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)
    if isinstance(value, list):
        return b"]q\x05(" + b"".join(map(python2, value)) + b"e"
    if isinstance(value, dict):
        return b"}q\x01(" + b"".join(python2(key) + python2(item) for key, item in value.items()) + b"u"
    rows, columns = value.shape
    return (b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\0\x85U\x01b\x87Rq\x09"
            b"(K\x01" + python2(rows) + python2(columns) + b"\x86cnumpy\ndtype\nq\x0aU\x02u1K\0K\x01\x87Rq\x0b"
            b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89T" + struct.pack("<I", value.size)
            + value.tobytes() + b"tb")


def main():
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.frombuffer(random.Random(1).randbytes(len(LABELS) * 3072), np.uint8).reshape(-1, 3072).copy()
    batch = {"batch_label": "training batch 1 of 5", "labels": LABELS, "data": pixels,
             "filenames": [f"{i}.png" for i in range(len(LABELS))]}
    meta = {"num_cases_per_batch": 2, "label_names": NAMES, "num_vis": 3072}
    as_bytes = {key.encode(): value for key, value in batch.items()}
    files = {
        "python2": b"\x80\x02" + python2(batch) + b".",
        "python2.meta": b"\x80\x02" + python2(meta) + b".",
        "python3_protocol2": pickle.dumps(as_bytes, 2),
        "python3_protocol2.meta": pickle.dumps({b"label_names": [name.encode() for name in NAMES]}, 2),
        "numpy1_protocol3": pickle.dumps(as_bytes, 3).replace(b"numpy._core", b"numpy.core"),
        "numpy2_protocol4": pickle.dumps(batch, 4),
        "numpy2_protocol5": pickle.dumps(batch, 5),
        "numpy2_protocol5.meta": pickle.dumps(meta, 5),
        "binary": b"".join(bytes([label]) + row.tobytes() for label, row in zip(LABELS, pixels)),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    assert (pickle.loads(files["python2"], encoding="latin1")["data"] == pixels).all()


if __name__ == "__main__":
    main()
