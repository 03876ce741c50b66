"""Seconds of an iteration: the kernels themselves, measured on some of the rows, and scaled to all of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastdc._input import as_tensor
from fastdc.cluster.gaussian_mixture import GaussianMixture
from fastdc.cluster.mini_batch import MiniBatchKMeans, _State
from fastdc.cluster.streaming import MOST_ROWS, block_of
from fastdc.data import RowSource, iter_chunks
from fastdc.kernels._parallel import distances_ns
from fastdc.kernels.kmeans import center_update, kmeans_step

TRIAL_NS = 2e8  # of a kernel on the larger of two samples, about
FEWEST, MOST = 512, 1 << 18  # rows of it
REPEATS = 3
TRIAL_BLOCKS = 5  # of a row source that are read while others are at work
LONGEST_BLOCK = 0.3  # seconds of the kernel; in longer ones reading hides


class Machine(NamedTuple):
    """What this machine reaches: a product of matrices, and a copy (read and write)."""

    gemm_gflops: float
    copy_gbs: float


class Line(NamedTuple):
    """Seconds that a call takes: ``once``, and for each row."""

    once: float
    a_row: float

    def of(self, rows: int) -> float:
        return self.once + rows * self.a_row


def measure_machine() -> Machine:
    a, source = torch.rand(768, 768), torch.zeros(1 << 26, dtype=torch.uint8)
    product, target = torch.empty_like(a), torch.empty_like(source)
    gemm = _seconds(lambda: torch.mm(a, a, out=product))
    return Machine(2e-9 * 768**3 / gemm, 2e-9 * len(source) / _seconds(lambda: target.copy_(source)))


def kmeans_iteration(rows: RowSource, n_clusters: int, *, streamed: bool) -> float:
    """Of a pass that makes all distances, and new centers."""
    n, d = rows.shape
    sample = _sample(rows, distances_ns(d, n_clusters))
    centers = _some(sample, n_clusters)

    def step(x: Tensor) -> None:
        found = kmeans_step(x, centers, previous_labels=torch.zeros(len(x), dtype=torch.int64))
        center_update(found.sums, found.counts, centers)

    line = _line(sample, step)
    if not streamed:
        return line.of(n)
    block = min(n, block_of(d, rows.dtype, MOST_ROWS))
    if block < n and line.of(block) < LONGEST_BLOCK:
        return n * _both_a_row(rows, block, step)
    computing = -(-n // block) * line.once + n * line.a_row
    return max(n * _reading_a_row(rows, block), computing)  # a thread reads ahead


def mini_batch_pass(rows: RowSource, n_clusters: int, batch_size: int) -> float:
    """Of a pass over all rows in batches."""
    n = len(rows)
    size = min(n, batch_size)
    x = as_tensor(rows.rows(0, n)) if rows.view(0, n) is not None else _sample(rows, 1.0)
    model = MiniBatchKMeans(n_clusters, batch_size=size)
    random = np.random.default_rng(0)
    counts = torch.ones(n_clusters, dtype=torch.float64)
    state = _State(_some(x, n_clusters), counts, 0, random, 0)

    def batches(count: int) -> None:
        for _ in range(count):
            chosen = torch.from_numpy(random.integers(len(x), size=size))
            state.learn(x[chosen], None, model)

    one = _seconds(lambda: batches(1))
    count = max(1, min(200, int(0.2 / max(one, 1e-6))))
    return -(-n // size) * _seconds(lambda: batches(count)) / count


def mixture_iteration(rows: RowSource, n_components: int, covariance_type: str) -> float:
    """Of an iteration of EM."""
    n, d = rows.shape
    sample = _sample(rows, 4 * distances_ns(d * d if covariance_type == "full" else d, n_components))
    means = _some(sample, n_components).numpy()
    model = GaussianMixture(n_components, covariance_type=covariance_type, means_init=means, check_finite=False)
    start = model._start(sample, n_components, 0)
    return _line(sample, lambda x: model._update(x, start)).of(n)


def _line(sample: Tensor, call: Callable[[Tensor], Any]) -> Line:
    """From a call on all of the sample, and on a quarter."""
    few = sample[: max(1, len(sample) // 4)]
    call(few)  # compiles
    long, short = _seconds(lambda: call(sample)), _seconds(lambda: call(few))
    a_row = max(0.0, long - short) / max(1, len(sample) - len(few))
    return Line(max(0.0, long - a_row * len(sample)), a_row or long / len(sample))


def _sample(rows: RowSource, row_ns: float) -> Tensor:
    """Rows that a kernel of so many nanoseconds a row is measured on, from the middle."""
    size = min(len(rows), int(min(MOST, max(FEWEST, TRIAL_NS / row_ns))))
    first = (len(rows) - size) // 2
    return as_tensor(np.array(rows.rows(first, first + size)))


def _some(x: Tensor, count: int) -> Tensor:
    """So many rows of x, again and again where there are fewer, a little apart."""
    chosen = x[torch.arange(count) * 7919 % len(x)]
    return chosen + 1e-3 * torch.arange(count, dtype=x.dtype)[:, None] * chosen.abs().mean() / count


def _both_a_row(rows: RowSource, block: int, step: Callable[[Tensor], None]) -> float:
    """Seconds a row that reading and computing take together, of blocks after the first."""
    times, seen = [], 0
    with closing(iter_chunks(rows, block)) as chunks:  # type: ignore[type-var]
        for _, x in chunks:
            step(x)
            times.append(time.perf_counter())
            seen += len(x) if len(times) > 1 else 0
            if len(times) == TRIAL_BLOCKS:
                break
    return (times[-1] - times[0]) / seen


def _reading_a_row(rows: RowSource, block: int) -> float:
    """Seconds a row that a block takes from where it lies into memory; of a mapped file to look at each page."""
    first = (len(rows) - block) // 3
    begin = time.perf_counter()
    float(np.asarray(rows.rows(first, first + block)).ravel()[::1024].sum())
    return (time.perf_counter() - begin) / block


def _seconds(call: Callable[[], Any]) -> float:
    """The least of a few."""
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return min(times)
