"""GPU kernels: launchers with the same functions as ``numba_kernel.py``.

Both directions are passes of the same two kernels, with the sides exchanged. Programs own blocks of rows and go over
the other side, in parts where there are few rows; no sum uses atomics, so results are deterministic.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdc.kernels._precision import working_dtype
from fastdc.kernels._triton import ALL_REGISTERS, Launch, chip_of, in_wide_pieces, launch, product_precision, row_splits
from fastdc.kernels.contrastive import triton_tiles as tiles
from fastdc.kernels.contrastive.sums import finish_sums


def contrast(
    anchors: Tensor,
    keys: Tensor | None,
    positives: Tensor | None,
    scale: float,
    integers: list[int],
    precision: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See ``custom_ops.py``."""
    job = _Job(anchors, keys, positives, scale, integers, precision)
    of_rows = of_columns = None
    if positives is not None:
        of_rows = torch.linalg.vecdot(job.anchors, job.keys[positives]).double() * (scale / math.log(2.0))
        of_columns = of_rows.new_full((job.n_columns,), torch.nan)
        if job.n_columns:
            of_columns[positives] = of_rows
    rows, row_state = finish_sums(*job.sums(job.rows()), of_rows)
    columns, column_state = finish_sums(*job.sums(job.columns(job.n_columns)), of_columns)
    return rows, columns, row_state, column_state


def contrast_backward(
    inputs: tuple[Tensor, Tensor | None, Tensor | None],
    states: tuple[Tensor, Tensor],
    cotangents: tuple[Tensor, Tensor],
    scale: float,
    integers: list[int],
    precision: str,
    needs: list[bool],
) -> tuple[Tensor, Tensor]:
    """Gradients of anchors and keys in the working dtype, of length 0 where not needed."""
    anchors, keys, _ = inputs
    job = _Job(*inputs, scale, integers, precision)
    largest = torch.cat([cotangent.abs() for cotangent in cotangents]).amax()
    unit = torch.where((largest > 0) & (largest < math.inf), largest, 1.0)  # sums down to 2^-80 divide the cotangents
    of_rows, of_columns = (job.weights(state, c / unit) for state, c in zip(states, cotangents))
    if keys is None:
        of_columns = of_rows
    factor = unit * scale
    grad_anchors, grad_keys = anchors.new_empty(0), anchors.new_empty(0)
    if needs[0]:
        grad_anchors = job.gradient(job.rows(), of_rows, of_columns, factor)
    if needs[1] and keys is not None:
        grad_keys = job.gradient(job.columns(keys.shape[0]), of_columns, of_rows, factor)
    return grad_anchors, grad_keys


class _Pass(NamedTuple):
    """Rows x against all rows of y."""

    x: Tensor
    y: Tensor
    self_offset: int
    transposed: bool


class _Job:
    """One call's inputs, and the launches of its kernels."""

    def __init__(
        self,
        anchors: Tensor,
        keys: Tensor | None,
        positives: Tensor | None,
        scale: float,
        integers: list[int],
        precision: str,
    ) -> None:
        self.anchors = anchors.detach()
        self.keys = self.anchors if keys is None else keys.detach()
        self.positives = positives
        self.self_offset, self.n_columns = integers
        if keys is None:
            self.self_offset = 0
        self.has_self = self.self_offset >= 0
        self.dtype = working_dtype(anchors)
        self.scale = torch.full((1,), scale / math.log(2.0), dtype=self.dtype, device=anchors.device)
        self.precision = product_precision(precision, anchors.shape[1], self.dtype)

    def rows(self) -> _Pass:
        return _Pass(self.anchors, self.keys, self.self_offset, False)

    def columns(self, n: int) -> _Pass:
        """The first n keys against the anchors."""
        return _Pass(self.keys[:n], self.anchors, -self.self_offset, True)

    def sums(self, sides: _Pass) -> tuple[Tensor, Tensor]:
        """(shifts, sums without positives) (n,), float64."""
        n = sides.x.shape[0]
        if n == 0:
            return self._doubles(0), self._doubles(0)
        choice, n_splits, others = self._launch(sides, 16 * n)
        shifts, sums = self._doubles(n_splits, n), self._doubles(n_splits, n)
        self._run(tiles._contrast_sums_kernel, sides, choice, n_splits, [shifts, sums, others])
        largest = shifts.amax(dim=0)
        largest = torch.where(largest == -math.inf, 0.0, largest)
        return largest, (sums * (shifts - largest).exp2()).sum(dim=0)

    def weights(self, state: Tensor, cotangents: Tensor) -> Tensor:
        """(3, n) in the working dtype: shift, cotangent / sum, and what is missing to the cotangent at positives."""
        shifts, sums, share = state
        factors = torch.where(cotangents == 0, 0.0, cotangents / sums)
        return torch.stack([shifts, factors, cotangents * share]).to(self.dtype)

    def gradient(self, sides: _Pass, own: Tensor, other: Tensor, factor: Tensor) -> Tensor:
        n, d = sides.x.shape
        choice, n_splits, others = self._launch(sides, self.dtype.itemsize * n * d)
        partial = torch.empty((n_splits, n, d), dtype=self.dtype, device=self.anchors.device)
        lengths = own.shape[1], other.shape[1]
        self._run(tiles._contrast_gradient_kernel, sides, choice, n_splits, [own, other, partial, *lengths, others])
        return partial.sum(dim=0).mul_(factor)

    def _doubles(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float64, device=self.anchors.device)

    def _launch(self, sides: _Pass, bytes_a_split: int) -> tuple[Launch, int, int]:
        n, m = sides.x.shape[0], sides.y.shape[0]
        chip = chip_of(self.anchors)
        choice = launch(
            m,
            in_wide_pieces(sides.x, sides.y),
            self.precision,
            self.dtype.itemsize,
            chip,
            "light" if n > 64 else "rows",
        )
        return choice, *row_splits(m, triton.cdiv(n, choice.block_n), bytes_a_split, choice.block_k, chip)

    def _run(self, kernel: Any, sides: _Pass, choice: Launch, n_splits: int, arguments: list[Any]) -> None:
        x, y = sides.x, sides.y
        grid = (triton.cdiv(x.shape[0], choice.block_n), n_splits)
        positives = self.scale if self.positives is None else self.positives
        with torch.cuda.device_of(x):
            kernel[grid](
                x, *x.stride(), y, *y.stride(), positives, self.scale, *arguments,
                sides.self_offset, x.shape[0], y.shape[0], x.shape[1],
                HAS_POSITIVES=self.positives is not None, HAS_SELF=self.has_self, TRANSPOSED=sides.transposed,
                ACC=tl.float64 if self.dtype == torch.float64 else tl.float32, PRECISION=self.precision,
                BLOCK_N=choice.block_n, BLOCK_M=choice.block_k, BLOCK_D=choice.block_d,
                num_warps=choice.num_warps, num_stages=choice.num_stages, **ALL_REGISTERS,
            )  # fmt: skip
