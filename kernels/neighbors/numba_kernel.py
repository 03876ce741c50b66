"""CPU kernels: pairs of blocks on threads around the compiled functions of ``numba_tiles.py``.

Among the points themselves a pair of blocks serves both: half the products. Two threads never hold the same
block. What is found does not depend on the order in which pairs are treated, since measured keys alone decide.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdc.kernels._copies import copy_space
from fastdc.kernels._parallel import block_rows, n_workers, run_blocks
from fastdc.kernels._precision import working_dtype
from fastdc.kernels._rows import as_array, empty, numpy_dtype
from fastdc.kernels._simd import INNER, prepare
from fastdc.kernels.neighbors import numba_radius as radius_tiles
from fastdc.kernels.neighbors import numba_tiles as tiles
from fastdc.kernels.neighbors.points import METRICS, metric_rows
from fastdc.kernels.neighbors.reference import largest_key

BLOCK_NUMBERS = 1 << 18  # numbers of a block of rows: with its products it stays in the cache of a core
TINY = {4: 1e-37, 8: 1e-300}


def knn(x: Tensor, queries: Tensor | None, n_neighbors: int, metric: str, precision: str) -> tuple[Tensor, Tensor]:
    """distances (m, n_neighbors) in the working dtype and indices, nearest first."""
    job = Job(x, queries, metric)
    best = open_best(job, n_neighbors)
    if queries is None:
        join_pairs(job, best, job.points_blocks, list(pairs_of_blocks(len(job.points_blocks))))
    else:
        _join(job, best)
    return finish(job, best)


def open_best(job: Job, n_neighbors: int) -> tiles.Best:
    """Room for the neighbours of each query; there are none yet."""
    m = len(job.queries.offsets)
    indices = empty((m, n_neighbors), np.dtype(np.int64)).numpy()
    best = tiles.Best(np.empty((m, n_neighbors)), indices, np.empty(m, job.dtype))
    best.keys[:], best.indices[:] = np.inf, tiles.NO_INDEX
    tiles.open_bounds(job.queries.offsets, best.bounds)
    return best


def finish(job: Job, best: tiles.Best) -> tuple[Tensor, Tensor]:
    """distances and indices, nearest first."""
    m, n_neighbors = best.keys.shape
    distances = empty((m, n_neighbors), job.dtype)

    def work(worker: int, start: int, stop: int) -> None:
        tiles.finish_block(best, job.limits.metric, start, stop, job.queries.offsets, distances.numpy())

    run_blocks(m, block_rows(m), work)
    return distances, torch.from_numpy(best.indices)


def _join(job: Job, best: tiles.Best) -> None:
    """Each block of queries meets the blocks of points in an order that has nothing to do with theirs."""
    order = list(scattered(job.points_blocks))

    def work(worker: int, start: int, stop: int) -> None:
        for p_start, p_stop in order:
            job.join(worker, (start, stop), (p_start, p_stop), best)

    run_blocks(len(best.bounds), job.q_rows, work)


def join_pairs(job: Job, best: tiles.Best, blocks: list[tuple[int, int]], pairs: list[tuple[int, int]]) -> None:
    """Pairs of blocks of the points, each for both sides, or for the one if both are the same."""
    locks = [threading.Lock() for _ in blocks]

    def work(worker: int, start: int, stop: int) -> None:
        i, j = pairs[start]
        with ExitStack() as held:
            for block in sorted({i, j}):
                held.enter_context(locks[block])
            job.join(worker, blocks[i], blocks[j], best, is_self=i == j, mutual=i != j)

    run_blocks(len(pairs), 1, work)


def radius_neighbors(
    x: Tensor, queries: Tensor | None, radius: float, metric: str, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    """indptr (m + 1), indices and distances in the working dtype; indices of a row rise."""
    job = Job(x, queries, metric)
    m = len(job.queries.offsets)
    limit = largest_key(radius, metric)
    blocks = list(range(0, m, job.q_rows))
    counts = np.zeros(m + 1, np.int64)
    found: list[tuple[NDArray, NDArray]] = [(np.empty(0, np.int64), np.empty(0, job.dtype))] * len(blocks)
    spaces = [radius_tiles.make_space(1 << 16) for _ in job.scratch]

    def work(worker: int, start: int, stop: int) -> None:
        rows = counts[start + 1 : stop + 1]
        arguments = (job.queries, start, stop, job.points, queries is None, limit, job.limits, job.scratch[worker])
        total = radius_tiles.radius_block(*arguments, spaces[worker], rows)
        if total > len(spaces[worker].keys):
            spaces[worker] = radius_tiles.make_space(total)
            radius_tiles.radius_block(*arguments, spaces[worker], rows)
        part = (np.empty(total, np.int64), np.empty(total, job.dtype))
        radius_tiles.by_row(spaces[worker], total, rows, job.limits.metric, *part)
        found[start // job.q_rows] = part

    run_blocks(m, job.q_rows, work)
    indptr = torch.from_numpy(counts.cumsum())
    indices, distances = (torch.from_numpy(np.concatenate(column)) for column in zip(*found))
    return indptr, indices, distances


def pairs_of_blocks(n_blocks: int) -> Iterator[tuple[int, int]]:
    """Every pair of blocks once, each with itself first; pairs that follow each other share no block.

    Blocks at distance r are (i, i + r); those with i // r even come first, so that a block is free again when
    its other pair begins.
    """
    yield from ((i, i) for i in range(n_blocks))
    for r in range(1, n_blocks // 2 + 1):
        firsts = range(n_blocks // 2 if 2 * r == n_blocks else n_blocks)
        for parity in range(2):
            yield from ((i, (i + r) % n_blocks) for i in firsts if i // r % 2 == parity)


def scattered(blocks: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """All blocks in steps of the golden section: the first few stand for all, however rows are sorted."""
    n = len(blocks)
    step = max(1, round(n * 0.618))
    while math.gcd(step, n) > 1:
        step += 1
    yield from (blocks[i * step % n] for i in range(n))


class Job:
    """One call's inputs as the tiles want them, and each worker's scratch."""

    def __init__(self, x: Tensor, queries: Tensor | None, metric: str) -> None:
        torch_dtype = working_dtype(x) if queries is None else working_dtype(x, queries)
        self.dtype = numpy_dtype(torch_dtype)
        prepare(self.dtype)
        both = [x] if queries is None else [x, queries]
        raw = [as_array(metric_rows(rows, metric, torch_dtype), self.dtype) for rows in both]
        shift, scale = _shift_and_scale(raw, metric)
        code = METRICS.index(metric)
        sides = [_side(rows, shift, scale, code) for rows in raw]
        self.points, self.queries = sides[0], sides[-1]
        n_features = x.shape[1]
        longest_chain = min(n_features, INNER) + -(-n_features // INNER)
        error = (longest_chain + 16) * float(np.finfo(self.dtype).eps) / 2
        reach = float(self.points.norms.max())
        self.limits = tiles.Limits(code, scale, error, reach, TINY[self.dtype.itemsize])
        largest = min(1024, max(512, BLOCK_NUMBERS // n_features // 64 * 64))
        n, m = len(raw[0]), len(raw[-1])
        self.q_rows = block_rows(m, largest=largest)
        p_rows = self.q_rows if queries is None else largest
        self.points_blocks = [(start, min(start + p_rows, n)) for start in range(0, n, p_rows)]
        n_units = -(-m // self.q_rows)
        workers = n_workers(n_units * (n_units + 1) // 2 if queries is None else n_units)
        self.scratch = [tiles.make_scratch(n_features, self.dtype) for _ in range(workers)]

    def join(
        self,
        worker: int,
        queries: tuple[int, int],
        points: tuple[int, int],
        best: tiles.Best,
        is_self: bool = False,
        mutual: bool = False,
    ) -> None:
        scratch = self.scratch[worker]
        tiles.join_blocks(self.queries, *queries, self.points, *points, is_self, mutual, self.limits, best, scratch)


def _shift_and_scale(raw: list[NDArray], metric: str) -> tuple[NDArray, float]:
    """The mean of the points, and the power of two that brings differences from it to at most one."""
    if metric == "cosine":
        return np.zeros(raw[0].shape[1]), 1.0
    extremes = [_extremes(rows) for rows in raw]
    shift = extremes[0].mean if metric == "euclidean" else np.zeros(raw[0].shape[1])
    with np.errstate(over="ignore"):
        largest = max(float(np.abs(edge - shift).max()) for e in extremes for edge in (e.lowest, e.highest))
    exponent = min(1000, max(-1000, math.frexp(largest)[1] if math.isfinite(largest) else 1000))
    return shift, 2.0**-exponent


class _Extremes(NamedTuple):
    mean: NDArray
    lowest: NDArray
    highest: NDArray


def _extremes(rows: NDArray) -> _Extremes:
    """Of the finite rows, float64; zeros where there is none."""
    with np.errstate(over="ignore", invalid="ignore"):
        mean = rows.mean(axis=0, dtype=np.float64)
        if not np.isfinite(mean).all():
            rows = rows[np.isfinite(rows).all(axis=1)]
            rows = rows if len(rows) else np.zeros((1, rows.shape[1]), rows.dtype)
            mean = np.nan_to_num(rows.mean(axis=0, dtype=np.float64), posinf=0.0, neginf=0.0)
    return _Extremes(mean, rows.min(axis=0).astype(np.float64), rows.max(axis=0).astype(np.float64))


def _side(raw: NDArray, shift: NDArray, scale: float, metric: int) -> tiles.Side:
    m = len(raw)
    side = tiles.Side(
        raw=raw,
        factors=copy_space(raw.shape, raw.dtype),
        offsets=np.empty(m, raw.dtype),
        norms=np.empty(m, raw.dtype),
        is_zero=np.zeros(m, np.bool_),
    )

    def work(worker: int, start: int, stop: int) -> None:
        here = slice(start, stop)
        outputs = (side.factors[here], side.offsets[here], side.norms[here], side.is_zero[here])
        tiles.prepare_block(raw[here], shift, scale, metric, *outputs)

    run_blocks(m, block_rows(m), work)
    return side
