"""CPU kernels: leaves on threads around the compiled passes of ``numba_tiles.py``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdc.kernels._parallel import n_workers, run_blocks
from fastdc.kernels._simd import prepare
from fastdc.kernels._vectors import LANES
from fastdc.kernels.density import numba_forest as forest
from fastdc.kernels.density import numba_tiles as tiles
from fastdc.kernels.density.numba_leaves import LEAF, Leaves, make_leaves

LEAVES_A_BLOCK = 16
FLOAT32_LIMITS = 1e-30, 1e36  # squared radii whose tiles neither underflow nor overflow


class Search:
    """Finite rows x (n, d), sorted once, and who is within a radius of whom."""

    def __init__(self, x: Tensor, limit: float) -> None:
        if not FLOAT32_LIMITS[0] < limit < FLOAT32_LIMITS[1]:
            x = x.double()
        rows = x.contiguous().numpy()
        prepare(rows.dtype)
        self.leaves: Leaves = make_leaves(rows)
        self.reach = tiles.make_reach(limit, rows.shape[1], rows.dtype)
        self.n = len(rows)
        self.n_leaves = -(-self.n // LEAF)
        workers = n_workers(-(-self.n_leaves // LEAVES_A_BLOCK))
        self.tiles = [np.empty((LANES, LANES), rows.dtype) for _ in range(workers)]

    def counts(self, weights: Tensor | None) -> Tensor:
        """Rows within the radius of each, itself among them: int64; with weights (n,) their float64 sums."""
        order = self.leaves.order
        counts = np.zeros(self.n if weights is None else 0, np.int64)
        sums = np.zeros(0 if weights is None else self.n)
        by_leaf = np.empty(0) if weights is None else weights.double().numpy()[order]
        self._run(tiles.count_leaves, by_leaf, scratch_then=(counts, sums))
        result = counts if weights is None else sums
        return self._in_order(result)

    def clusters(self, is_core: Tensor) -> Tensor:
        """The number of each row's set of cores, -1 for a row within the radius of none."""
        leaves = self.leaves
        core = is_core.numpy()[leaves.order]
        cores = tiles.Cores(core, np.arange(self.n), _first_in_leaf(core), np.zeros(self.n_leaves, np.bool_))
        self._run(tiles.join_leaves, cores)
        places = np.empty(self.n, np.int64)
        places[leaves.order] = np.arange(self.n)
        numbers = np.empty(self.n, np.int64)
        forest.number_sets(cores.parents, core, places, numbers)
        numbers[~core] = tiles.NO_CLUSTER
        self._run(tiles.reach_leaves, cores, numbers)
        numbers[numbers == tiles.NO_CLUSTER] = -1
        return self._in_order(numbers)

    def _run(self, passes: Callable[..., None], *given: Any, scratch_then: tuple[NDArray, ...] = ()) -> None:
        def work(worker: int, start: int, stop: int) -> None:
            passes(self.leaves, start, stop, self.reach, *given, self.tiles[worker], *scratch_then)

        run_blocks(self.n_leaves, LEAVES_A_BLOCK, work)

    def _in_order(self, by_leaf: NDArray) -> Tensor:
        result = np.empty_like(by_leaf)
        result[self.leaves.order] = by_leaf
        return torch.from_numpy(result)


def _first_in_leaf(core: NDArray) -> NDArray:
    """Each leaf's first core row, -1 where it has none."""
    n = len(core)
    padded = np.zeros(-(-n // LEAF) * LEAF, np.bool_)
    padded[:n] = core
    by_leaf = padded.reshape(-1, LEAF)
    first = by_leaf.argmax(axis=1) + LEAF * np.arange(len(by_leaf))
    return np.where(by_leaf.any(axis=1), first, -1)
