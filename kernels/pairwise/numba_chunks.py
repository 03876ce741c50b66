"""Points that stand on both sides of a pair: 64 of them in lanes, and all of them in turn, a chunk at a time."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastdc.kernels._lanes import padded
from fastdc.kernels._numba import jit
from fastdc.kernels._precision import BY_DIFFERENCES
from fastdc.kernels._simd import prepare
from fastdc.kernels._tile import Centers, Scratch, make_scratch
from fastdc.kernels._vectors import LANES

CHUNK = 96  # points of a chunk: a tile of 24 kB, and whole tiles of the products beneath


class Points(NamedTuple):
    """All points, as ``Centers`` of ``_tile.py`` wants them."""

    raw: NDArray  # (n, d)
    shift: NDArray  # (padded,) their mean; zeros with few features
    shifted: NDArray  # (n, d) raw - shift
    columns: NDArray  # (n d,) of each chunk (d, size): -shifted; raw with few features
    sq_norms: NDArray  # (n,) of the shifted points


class Work(NamedTuple):
    """What one worker owns."""

    scratch: Scratch
    tile: NDArray  # (CHUNK, 64)
    which: NDArray  # (64,) int32: which point stands in each lane
    label: NDArray  # (64,) int32: its label
    lanes: NDArray  # (8, 64) numbers that a lane keeps
    sums: NDArray  # (4, 64) float64
    columns: NDArray  # (padded, 64) the rows in lanes, where they need no distances
    gradient: NDArray  # (padded, 64)


def prepare_points(raw: NDArray, shifts: bool = True) -> Points:
    """``shifts=False`` keeps points as they are however many features they have: for products, not distances."""
    prepare(raw.dtype)
    n, d = raw.shape
    shift = np.zeros(padded(d), raw.dtype)
    shifted, sq_norms, sign = raw, np.zeros(n, raw.dtype), 1
    if shifts and d > BY_DIFFERENCES:
        mean = raw.mean(axis=0, dtype=np.float64).astype(raw.dtype)
        shift[:d] = np.where(np.isfinite(mean), mean, 0)
        shifted, sign = raw - shift[:d], -1
        sq_norms = np.einsum("nd,nd->n", shifted, shifted)
    columns = np.empty(n * d, raw.dtype)
    for first in range(0, n, CHUNK):
        part = shifted[first : first + CHUNK]
        np.multiply(part.T, sign, out=columns[first * d : first * d + part.size].reshape(part.T.shape))
    return Points(raw, shift, shifted, columns, sq_norms)


def make_work(n_features: int, dtype: np.dtype) -> Work:
    return Work(
        scratch=make_scratch(CHUNK, n_features, dtype),
        tile=np.empty((CHUNK, LANES), dtype),
        which=np.empty(LANES, np.int32),
        label=np.empty(LANES, np.int32),
        lanes=np.empty((8, LANES), dtype),
        sums=np.empty((4, LANES)),
        columns=np.empty((padded(n_features), LANES), dtype),
        gradient=np.empty((padded(n_features), LANES), dtype),
    )


@jit(inner=True)
def chunk_of(points, first, size):
    """Points first … first + size, the first a multiple of CHUNK, as centers."""
    d = points.raw.shape[1]
    stop = first + size
    columns = points.columns[first * d : stop * d].reshape((d, size))
    return Centers(
        points.raw[first:stop], points.shift, points.shifted[first:stop], columns, points.sq_norms[first:stop]
    )


@jit(inner=True)
def name_lanes(labels, first, stop, work):
    """Index and label of the points from ``first`` on; free lanes repeat the last one."""
    for lane in range(LANES):
        i = min(first + lane, stop - 1)
        work.which[lane] = i
        work.label[lane] = labels[i]
