"""Seconds of all rows, from the kernels themselves on some of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from fastdc._input import as_tensor
from fastdc.data import RowSource, iter_chunks

TRIAL_NS = 2e8  # of a kernel on the larger of two samples, about
FEWEST, MOST = 4096, 1 << 18  # rows of it; a quarter of the fewest are as many blocks as there will be of all
REPEATS = 3
TRIAL_BLOCKS = 5  # of a row source that are read while others are at work
LONGEST_BLOCK = 0.3  # seconds of the kernel; in longer ones reading hides
FIRST_ROWS = 2048  # of trials of work that grows faster than the rows do
LONG_ENOUGH = 1.0  # seconds of the last of them
FITTED = 3  # of the last, through which what is beyond is extrapolated


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
    gemm = least_seconds(lambda: torch.mm(a, a, out=product))
    return Machine(2e-9 * 768**3 / gemm, 2e-9 * len(source) / least_seconds(lambda: target.copy_(source)))


def pass_seconds(rows: RowSource, sample: Tensor, step: Callable[[Tensor], Any], block: int | None = None) -> float:
    """Of ``step`` on all rows at once; or on ``block`` of them at a time, while a thread reads ahead."""
    line = line_of(sample, step)
    n = len(rows)
    if block is None:
        return line.of(n)
    block = min(n, block)
    if block < n and line.of(block) < LONGEST_BLOCK:
        return n * _both_a_row(rows, block, step)
    computing = -(-n // block) * line.once + n * line.a_row
    return max(n * reading_a_row(rows, block), computing)


def line_of(sample: Tensor, call: Callable[[Tensor], Any]) -> Line:
    """From a call on all of the sample, and on a quarter."""
    few = sample[: max(1, len(sample) // 4)]
    call(few)  # compiles
    long, short = least_seconds(lambda: call(sample)), least_seconds(lambda: call(few))
    a_row = max(0.0, long - short) / max(1, len(sample) - len(few))
    return Line(max(0.0, long - a_row * len(sample)), a_row or long / len(sample))


def grown_seconds(
    n: int,
    draw: Callable[[int], Tensor],
    call: Callable[[Tensor], Any],
    powers: tuple[float, float] = (1.0, 2.0),
    first: int = FIRST_ROWS,
) -> float:
    """Of ``call`` on n rows; ``draw`` gives some of them, ``first`` at least. See :func:`grown`."""

    def measure(size: int) -> float:
        sample = draw(size)
        return least_seconds(lambda: call(sample))

    call(draw(min(n, first)))  # compiles
    return grown(measure, n, powers, first)


def grown(
    measure: Callable[[int], float], n: int, powers: tuple[float, float] = (1.0, 2.0), first: int = FIRST_ROWS
) -> float:
    """Seconds at n rows of what grows as a sum of two powers of the rows, such as ``a n + b n^2``.

    ``measure`` gives the seconds of more and more rows, twice as many each time, until these are a second: what is
    beyond is an extrapolation from the last three.
    """
    sizes = [min(n, first)]
    seconds = [measure(sizes[0])]
    while sizes[-1] < min(n, MOST) and (len(sizes) < 2 or seconds[-1] < LONG_ENOUGH):
        sizes.append(min(n, 2 * sizes[-1]))
        seconds.append(measure(sizes[-1]))
    if sizes[-1] == n:
        return seconds[-1]
    terms = (np.array(sizes[-FITTED:]) / n)[:, None] ** powers
    at_n, _ = nnls(terms / np.array(seconds[-FITTED:])[:, None], np.ones(len(terms)))  # least relative errors
    return float(at_n.sum())


def by_chance(rows: RowSource, size: int) -> Tensor:
    """So many of the rows, in their order."""
    chosen = np.random.default_rng(0).choice(len(rows), min(size, len(rows)), replace=False)
    return as_tensor(rows.take(np.sort(chosen)))


def sample_of(rows: RowSource, row_ns: float) -> Tensor:
    """Rows that a kernel of so many nanoseconds a row is measured on, from the middle."""
    return middle_of(rows, int(min(MOST, max(FEWEST, TRIAL_NS / row_ns))))


def middle_of(rows: RowSource, size: int) -> Tensor:
    size = min(len(rows), size)
    first = (len(rows) - size) // 2
    return as_tensor(np.array(rows.rows(first, first + size)))


def some_of(x: Tensor, count: int) -> Tensor:
    """So many rows of x, a little aside; where there are fewer, again and again, well apart: what is nearly equal takes
    kernels longer.
    """
    chosen = x[torch.arange(count) * 7919 % len(x)]
    aside = torch.randn(chosen.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(0)) * x.std(
        0, correction=0
    )
    return chosen + torch.where(torch.arange(count) < len(x), 1e-3, 0.5)[:, None].to(x) * aside


def least_seconds(call: Callable[[], Any]) -> float:
    """The least of a few calls."""
    times: list[float] = []
    while len(times) < REPEATS and sum(times) < LONG_ENOUGH:
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return min(times)


def _both_a_row(rows: RowSource, block: int, step: Callable[[Tensor], Any]) -> float:
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


def reading_a_row(rows: RowSource, block: int) -> float:
    """Seconds a row that a block takes from where it lies into memory; of a mapped file to look at each page."""
    first = (len(rows) - block) // 3
    begin = time.perf_counter()
    float(np.asarray(rows.rows(first, first + block)).ravel()[::1024].sum())
    return (time.perf_counter() - begin) / block
