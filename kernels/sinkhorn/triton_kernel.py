"""GPU kernels: two sweeps over the scores an iteration, over columns and over rows, each with its own shift.

No sum over rows uses atomics, so results are deterministic; nothing waits for the GPU unless ``tol`` asks whether
to stop.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdc.kernels._precision import working_dtype
from fastdc.kernels._triton import ALL_REGISTERS, chip_of, row_splits
from fastdc.kernels.sinkhorn import triton_tiles as tiles
from fastdc.kernels.sinkhorn.iterate import Marginals, find_potential

TILE = 2048  # entries that a program holds at once
WIDEST = 128  # columns of them
NUM_WARPS = 4


def sinkhorn_assign(
    scores: Tensor,
    epsilon: float,
    n_iters: int,
    tol: float | None,
    row_marginal: Tensor | None,
    column_marginal: Tensor | None,
    group: Any = None,
) -> Tensor:
    """q (n, k) in the working dtype."""
    marginals = Marginals(row_marginal, column_marginal, scores.shape, scores.device, group)
    passes = ScorePasses(scores, epsilon)
    return passes.assign(*find_potential(passes, marginals, n_iters, tol))


def launch(k: int) -> tuple[int, int]:
    """(rows, columns) of a tile."""
    block_k = min(WIDEST, max(16, triton.next_power_of_2(k)))
    return TILE // block_k, block_k


class ScorePasses:
    """The passes of ``iterate.py`` over a matrix of scores, and its codes."""

    def __init__(self, scores: Tensor, epsilon: float) -> None:
        self.scores = scores
        self.n, self.k = scores.shape
        self.dtype = working_dtype(scores)
        self.block_n, self.block_k = launch(self.k)
        scale = torch.full((1,), 1.0 / (math.log(2.0) * epsilon), dtype=torch.float64, device=scores.device)
        self.matrix = (scores, *scores.stride(), scale)
        self.row_programs = triton.cdiv(self.n, self.block_n)
        self.column_programs = triton.cdiv(self.k, self.block_k)

    def columns(self, row_potential: Tensor | None) -> tuple[Tensor, Tensor]:
        potential = torch.zeros_like(self._doubles(self.n)) if row_potential is None else row_potential
        n_splits, rows = row_splits(self.n, self.column_programs, 16 * self.k, self.block_n, chip_of(self.scores))
        shift, total = self._doubles(n_splits, self.k), self._doubles(n_splits, self.k)
        grid = (n_splits, self.column_programs)
        self._run(tiles._sinkhorn_columns_kernel, grid, potential, shift, total, rows)
        largest = shift.amax(dim=0)
        dead = largest == -torch.inf
        total = torch.where(dead, total, total * (shift - largest).exp2()).sum(dim=0)
        return largest, total

    def step(self, column_potential: Tensor, bound: Tensor) -> tuple[Tensor, None]:
        logs = self._doubles(self.n)
        self._run(tiles._sinkhorn_rows_kernel, (self.row_programs,), column_potential, logs)
        return logs, None

    def assign(self, column_potential: Tensor, bound: Tensor) -> Tensor:
        logs, _ = self.step(column_potential, bound)
        q = torch.empty((self.n, self.k), dtype=self.dtype, device=self.scores.device)
        grid = (self.row_programs, self.column_programs)
        self._run(tiles._sinkhorn_assign_kernel, grid, column_potential, logs, q)
        return q

    def _doubles(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float64, device=self.scores.device)

    def _run(self, kernel: Any, grid: tuple[int, ...], *arguments: Any) -> None:
        accumulator = tl.float64 if self.dtype == torch.float64 else tl.float32
        with torch.cuda.device_of(self.scores):
            kernel[grid](
                *self.matrix,
                *arguments,
                self.n,
                self.k,
                ACC=accumulator,
                BLOCK_N=self.block_n,
                BLOCK_K=self.block_k,
                num_warps=NUM_WARPS,
                num_stages=1,
                **ALL_REGISTERS,
            )
