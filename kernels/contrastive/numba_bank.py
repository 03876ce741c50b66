"""Keys that are no positives, such as a memory bank: their sums and what they pull anchors to, in one pass.

Exponentials without a shift need no second look: sum_j e_ij and sum_j e_ij k_j of an anchor follow from one tile each,
and the division by the whole sum comes last. A bank is neither copied nor normalised beforehand: tiles of it are.
Sums are float32 within a block of keys and float64 beyond, committed in order; gradients of the bank, where wanted,
are a second pass.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastdc.kernels._lengths import largest_sq_length
from fastdc.kernels._math import exp2
from fastdc.kernels._numba import jit
from fastdc.kernels._parallel import block_rows, n_workers, run_blocks
from fastdc.kernels._rows import Rows, empty
from fastdc.kernels._simd import gemm
from fastdc.kernels.contrastive.numba_kernel import Job
from fastdc.kernels.contrastive.numba_tiles import add_transposed, exponentials_and_sums, transpose_tiles
from fastdc.kernels.contrastive.numba_units import unit_block, unit_gradients_block

LARGEST_BLOCK = 4096  # keys


class Scratch(NamedTuple):
    """What one worker owns."""

    keys: NDArray  # (1, side, padded)
    columns: NDArray  # (1, padded, side)
    lengths: NDArray  # (side,)
    tile: NDArray  # (side, side)
    gradients: NDArray  # (side, padded)
    partial: NDArray  # (side,)


class Bank:
    """Further keys of a job's anchors."""

    def __init__(self, bank: Tensor, normalize: bool, job: Job) -> None:
        (self.n, self.d), self.normalize, self.job = bank.shape, normalize, job
        self.rows, self.dtype = Rows(bank, job.dtype), job.dtype
        n_anchors, width = job.sides.anchors.shape
        side, self.columns = job.side, job.anchor_columns()
        row_ns = n_anchors * (width + 32) / 25
        self.block = block_rows(self.n, side, LARGEST_BLOCK, row_ns)
        self.scratch = [
            Scratch(
                np.zeros((1, side, width), self.dtype),
                np.empty((1, width, side), self.dtype),
                np.empty(side if normalize else 0, self.dtype),
                np.empty((side, side), self.dtype),
                np.empty((side, width), self.dtype),
                np.empty(side, self.dtype),
            )
            for _ in range(n_workers(-(-self.n // self.block)))
        ]

    def is_safe(self) -> bool:
        """Whether no exponent needs a shift, by the lengths of the rows."""
        return not self.job.needs_shifts(1.0 if self.normalize else largest_sq_length(self.rows, self.n, self.d))

    def sums(self, with_pulls: bool) -> tuple[NDArray, NDArray]:
        """Sums of exponentials (n_anchors,) float64, and of these times the keys (whole tiles, padded), if wanted."""
        columns, scale = self.columns, self.job.sides.scale
        n_tiles, width, side = columns.shape
        sums, pulls = np.zeros((n_tiles, side)), np.zeros((n_tiles if with_pulls else 0, width, side), self.dtype)
        partial = [(np.zeros(sums.shape), np.zeros(pulls.shape, self.dtype)) for _ in self.scratch]

        def work(worker: int, start: int, stop: int) -> None:
            bank_block(self.rows[start:stop], columns, scale, self.scratch[worker], *partial[worker])

        def commit(worker: int) -> None:
            for total, part in zip((sums, pulls), partial[worker]):
                total += part
                part[:] = 0

        run_blocks(self.n, self.block, work, commit)
        by_rows = np.zeros((len(pulls) * side, width), self.dtype)
        add_transposed(pulls, by_rows)
        return sums.ravel()[: self.job.n], by_rows

    def gradient(self, totals: NDArray, factor: np.floating) -> Tensor:
        """Of the bank (n, d), from the whole sums of the anchors (n_anchors,)."""
        found = empty((self.n, self.d), self.dtype)
        out, factors = found.numpy(), np.zeros(len(self.job.sides.anchors), self.dtype)
        factors[: totals.size] = 1.0 / totals
        anchors, columns, scale = self.job.sides.anchors, self.columns, self.job.sides.scale

        def work(worker: int, start: int, stop: int) -> None:
            given = anchors, columns, scale, factors, factor
            bank_gradient_block(self.rows[start:stop], given, self.scratch[worker], out[start:stop])

        run_blocks(self.n, self.block, work)
        return found


@jit(inner=True)
def _load(x, scratch):
    """The first rows of x as keys and as columns, the rest zeros; how many there are."""
    keys = scratch.keys[0]
    used = min(x.shape[0], keys.shape[0])
    unit_block(x[:used], keys, scratch.lengths)
    keys[used:] = 0
    return used


@jit
def bank_block(x, anchors, scale, scratch, sums, pulls):
    """Exponentials of keys x (m, d) and anchors (tiles, padded, side), added to sums (tiles, side), float64.

    pulls (as anchors, or of no tiles) += these times keys.
    """
    tile, keys, partial = scratch.tile, scratch.keys[0], scratch.partial
    side = tile.shape[0]
    for start in range(0, x.shape[0], side):
        used = _load(x[start:], scratch)
        transpose_tiles(keys, scratch.columns)
        for i in range(anchors.shape[0]):
            gemm(keys, anchors[i], tile, False)
            partial[:] = 0
            for row in range(side):
                if row < used:
                    exponentials_and_sums(tile[row], scale, partial)
                else:
                    tile[row] = 0
            for lane in range(side):
                sums[i, lane] += partial[lane]
            if pulls.shape[0] > 0:
                gemm(scratch.columns[0], tile, pulls[i], True)


@jit
def bank_gradient_block(x, given, scratch, out):
    """out (m, d): gradients of the keys x (m, d), through their lengths.

    given: anchors, the same transposed by tiles, the scale, what the exponentials of each anchor are multiplied by,
    and the gradients.
    """
    anchors, columns, scale, factors, factor = given
    tile, keys, gradients = scratch.tile, scratch.keys[0], scratch.gradients
    side = tile.shape[0]
    for start in range(0, x.shape[0], side):
        used = _load(x[start:], scratch)
        gradients[:] = 0
        for i in range(columns.shape[0]):
            own = factors[i * side : (i + 1) * side]
            gemm(keys, columns[i], tile, False)
            for a in range(side):
                row = tile[a]
                for column in range(side):
                    row[column] = exp2(row[column] * scale) * own[column]
            gemm(tile, anchors[i * side : (i + 1) * side], gradients, True)
        unit_gradients_block(keys, scratch.lengths, gradients, factor, out[start : start + used])
