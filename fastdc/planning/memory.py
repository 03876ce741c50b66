"""Bytes that an estimator adds at its peak, from the shapes alone; and how many are free."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from fastdc.cluster.streaming import MOST_ROWS, SAMPLED_PER_CLUSTER, block_of
from fastdc.data import RowSource
from fastdc.data.stream import BUFFERS

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
KERNEL_BYTES = 4 << 20  # scratch and what small calls leave with the allocator
LABEL_BYTES = 49  # a row, measured: labels of two passes, and what compares and counts them
MOST_GROUPS = 65  # of the bounds of k-means


class Shape(NamedTuple):
    """What memory and time follow from."""

    n: int
    d: int
    k: int
    itemsize: int  # of the dtype that is computed in
    is_mapped: bool  # rows are seen where they lie, and need not be read into memory

    @classmethod
    def of(cls, rows: RowSource, n_clusters: int) -> Shape:
        return cls(*rows.shape, n_clusters, rows.dtype.itemsize, rows.view(0, 1) is not None)


def kmeans_bytes(shape: Shape) -> int:
    """Of ``KMeans`` over an array, beside it: labels of two passes, and bounds, which it may come to keep."""
    groups = min(MOST_GROUPS, math.isqrt(shape.k) + 1) if shape.k >= 16 and shape.d >= 9 else 0
    per_row = LABEL_BYTES + (8 + 4 * groups if groups else 0)
    return shape.n * per_row + _center_bytes(shape) + KERNEL_BYTES


def streamed_kmeans_bytes(shape: Shape) -> int:
    """Of ``KMeans`` over a row source: int32 labels of two passes, and the larger of what seeding and a pass take."""
    block = min(shape.n, block_of(shape.d, np.dtype(f"f{shape.itemsize}"), MOST_ROWS))
    row = shape.d * shape.itemsize
    buffers = 0 if shape.is_mapped else min(BUFFERS, -(-shape.n // block)) * block * row
    sampled = min(shape.n, max(block, SAMPLED_PER_CLUSTER * shape.k))
    seeding = sampled * (row * (1 if shape.is_mapped else 2) + shape.itemsize + 24)
    passing = buffers + block * 33 + _center_bytes(shape) + 8 * shape.n
    return max(seeding, passing) + KERNEL_BYTES


def mini_batch_bytes(shape: Shape, batch_size: int) -> int:
    """Of ``MiniBatchKMeans`` beside its rows: an order of all rows, two batches, and at the end the labels."""
    batch = min(shape.n, batch_size) * (2 * shape.d * shape.itemsize + 24)
    return 20 * shape.n + batch + _center_bytes(shape) + KERNEL_BYTES


def mixture_bytes(shape: Shape, covariance_type: str) -> int:
    """Of ``GaussianMixture`` beside its rows: those of the k-means that it starts from, or its own."""
    threads, k, d = torch.get_num_threads(), shape.k, shape.d
    scatters = {"diag": k * d, "spherical": k, "tied": d * d, "full": k * d * d}[covariance_type]
    copies = 8 * (threads + 7)  # sums in float64 of each thread, and what an update makes of them
    own = 16 * shape.n + copies * (k * d + scatters)
    return max(kmeans_bytes(shape), own + KERNEL_BYTES)


def whole_bytes(shape: Shape) -> int:
    """Of all rows in memory, where an estimator needs them there and they cannot be seen where they lie."""
    return 0 if shape.is_mapped else shape.n * shape.d * shape.itemsize


def _center_bytes(shape: Shape) -> int:
    """Centers as a pass and an update have them: sums of all threads in float64, and copies."""
    return shape.k * (shape.d * (8 * (4 + torch.get_num_threads()) + 4 * shape.itemsize) + 64)


def free_bytes() -> int:
    """Memory that can still be allocated on this machine, within the limit of its control group."""
    for line in _read(_MEMINFO).splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
            break
    else:  # not Linux
        return 1 << 62
    limit, used = _read(_CGROUP / "memory.max").strip(), _read(_CGROUP / "memory.current").strip()
    if not limit.isdecimal() or not used.isdecimal():  # no such group, or no limit
        return available
    return max(0, min(available, int(limit) - int(used)))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
