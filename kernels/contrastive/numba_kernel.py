"""CPU kernel: one pass over tiles of products for the sums, another that makes them again for the gradients.

Sums over a row are float32 within a tile and float64 beyond; those over a column are float32 within a block of at
most 1024 anchors and float64 beyond. Blocks are committed in order.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdc.kernels._lanes import padded
from fastdc.kernels._parallel import n_workers, run_blocks
from fastdc.kernels._precision import working_dtype
from fastdc.kernels._rows import as_array, numpy_dtype
from fastdc.kernels._simd import prepare
from fastdc.kernels.contrastive import numba_tiles as tiles
from fastdc.kernels.contrastive.sums import finish_sums

SAFE_EXPONENT = {4: 80.0, 8: 500.0}  # by itemsize: powers up to it, their sums and ratios are normal numbers
TILE, SMALL_TILE = 128, 64  # sides of a tile
SMALL = 1024  # anchors up to which tiles are small, so that there are enough of them for all threads
LARGEST_BLOCK = 8  # tiles of anchors


def contrast(
    anchors: Tensor,
    keys: Tensor | None,
    positives: Tensor | None,
    scale: float,
    integers: list[int],
    precision: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See ``custom_ops.py``."""
    job = _Job(anchors, keys, positives, scale, integers)
    shifts = job.find_shifts() if job.needs_shifts() else None
    lower = job.lower_shifts(shifts)
    row_sums, column_sums = np.zeros(job.n), np.zeros(job.n_key_tiles * job.side)
    exponents = np.full(job.n, np.nan)  # NaN stays where a positive is no key
    partial = [np.zeros((job.n_steps, job.side), job.dtype) for _ in job.tiles]

    def work(worker: int, first: int, last: int) -> None:
        tiles.sums_block(job.sides, first, last, job.tiles[worker], lower, row_sums, exponents, partial[worker])

    def commit(worker: int, first: int, last: int) -> None:
        for step, columns in job.steps(first, last):
            column_sums[columns] += partial[worker][step]
        partial[worker][:] = 0

    job.run(work, commit)
    if job.sides.ring:
        row_sums += column_sums[: job.n]
    n_columns = job.sides.n_columns
    row_shifts, column_shifts = (np.zeros(job.n), np.zeros(n_columns)) if shifts is None else shifts
    of_rows = of_columns = None
    if positives is not None:
        of_rows, of_columns = torch.from_numpy(exponents), torch.full((n_columns,), torch.nan, dtype=torch.float64)
        if n_columns:
            of_columns[positives] = of_rows
    rows, row_state = finish_sums(torch.from_numpy(row_shifts), torch.from_numpy(row_sums), of_rows)
    of_keys = torch.from_numpy(column_shifts[:n_columns]), torch.from_numpy(column_sums[:n_columns])
    columns, column_state = finish_sums(*of_keys, of_columns)
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
    job = _Job(*inputs, scale, integers, by_keys=needs[1])
    of_rows, of_columns = (cotangent.double().numpy() for cotangent in cotangents)
    row_state, column_state = (state.numpy() for state in states)
    largest = max(float(np.abs(cotangent).max(initial=0.0)) for cotangent in (of_rows, of_columns))
    unit = largest if 0.0 < largest < math.inf else 1.0  # cotangents near one, since sums down to 2^-80 divide them
    of_rows, of_columns = of_rows / unit, of_columns / unit
    if job.sides.ring:
        column_state, of_columns = row_state, of_rows
    missing = (of_rows * row_state[2]).astype(job.dtype), (of_columns * column_state[2]).astype(job.dtype)
    shifted = row_state[0].any() or column_state[0].any()
    shifts = job.lower_shifts((row_state[0], column_state[0]) if shifted else None)
    factors = job.factors(of_rows, row_state[1]), job.factors(of_columns, column_state[1], columns=True)
    width, side = job.sides.anchors.shape[1], job.side
    by_rows = np.zeros(job.sides.anchors.shape if needs[0] else (0, width), job.dtype)
    need_columns = job.sides.ring or needs[1]
    by_columns = np.zeros((job.n_key_tiles if need_columns else 0, width, side), job.dtype)
    partial = [np.zeros((job.n_steps if need_columns else 0, width, side), job.dtype) for _ in job.tiles]

    def work(worker: int, first: int, last: int) -> None:
        tile = job.tiles[worker]
        tiles.gradients_block(job.sides, first, last, tile, shifts, factors, missing, by_rows, partial[worker])

    def commit(worker: int, first: int, last: int) -> None:
        if need_columns:
            tiles.add_steps(job.sides, first, last, side, partial[worker], by_columns)

    job.run(work, commit)
    factor = job.dtype.type(unit * scale)
    grad_anchors, grad_keys = anchors.new_empty(0), anchors.new_empty(0)
    if needs[0]:
        grad_anchors = _finished(by_columns if job.sides.ring else None, by_rows, factor, anchors)
    if needs[1] and keys is not None:
        grad_keys = _finished(by_columns, np.zeros_like(job.sides.keys), factor, keys)
    return grad_anchors, grad_keys


def _finished(columns: NDArray | None, rows: NDArray, factor: np.generic, like: Tensor) -> Tensor:
    """factor (rows + columns transposed), without the padding."""
    if columns is None:
        rows *= factor
    else:
        for start in range(0, rows.shape[0], columns.shape[2]):
            tiles.finish_tile(columns[start // columns.shape[2]], rows[start : start + columns.shape[2]], factor)
    return torch.from_numpy(rows)[: like.shape[0], : like.shape[1]].contiguous()


class _Job:
    """One call's inputs as the tiles want them, and a tile for each worker."""

    def __init__(
        self,
        anchors: Tensor,
        keys: Tensor | None,
        positives: Tensor | None,
        scale: float,
        integers: list[int],
        by_keys: bool = False,
    ) -> None:
        self.dtype = numpy_dtype(working_dtype(anchors))
        prepare(self.dtype)
        self.n, self.d = anchors.shape
        self.side = SMALL_TILE if self.n <= SMALL else TILE
        self_offset, n_columns = integers
        rows = self._padded(anchors)
        of_keys = rows if keys is None else self._padded(keys)
        key_columns = self._transposed(of_keys)
        self.sides = tiles.Sides(
            anchors=rows,
            keys=of_keys,
            anchor_columns=key_columns if keys is None else self._transposed(rows[: len(rows) if by_keys else 0]),
            key_columns=key_columns,
            positives=np.empty(0, np.int64) if positives is None else positives.numpy(),
            scale=self.dtype.type(scale / math.log(2.0)),
            n_anchors=self.n,
            n_keys=self.n if keys is None else keys.shape[0],
            n_columns=n_columns,
            self_offset=0 if keys is None else self_offset,
            ring=keys is None,
        )
        n_tiles = rows.shape[0] // self.side
        self.n_key_tiles = self.sides.keys.shape[0] // self.side
        self.block = max(1, min(LARGEST_BLOCK, -(-n_tiles // 16)))
        self.n_steps = self.block + n_tiles // 2 if self.sides.ring else self.n_key_tiles
        self.n_tiles = n_tiles
        workers = n_workers(-(-n_tiles // self.block))
        self.tiles = [np.empty((self.side, self.side), self.dtype) for _ in range(workers)]

    def _padded(self, x: Tensor) -> NDArray:
        """x itself where it has whole tiles and vectors already."""
        n, width = -(-x.shape[0] // self.side) * self.side, padded(x.shape[1])
        rows = as_array(x, self.dtype)
        if rows.shape == (n, width):
            return rows
        larger = np.zeros((n, width), self.dtype)
        larger[: x.shape[0], : x.shape[1]] = rows
        return larger

    def _transposed(self, rows: NDArray) -> NDArray:
        columns = np.empty((rows.shape[0] // self.side, rows.shape[1], self.side), self.dtype)
        tiles.transpose_tiles(rows, columns)
        return columns

    def run(self, work: Callable[[int, int, int], None], commit: Callable[[int, int, int], None]) -> None:
        """``work`` and ``commit`` are given the worker and its block of anchor tiles."""
        current = [(0, 0)] * len(self.tiles)

        def take(worker: int, first: int, last: int) -> None:
            current[worker] = first, last
            work(worker, first, last)

        run_blocks(self.n_tiles, self.block, take, lambda worker: commit(worker, *current[worker]))

    def steps(self, first: int, last: int) -> list[tuple[int, slice]]:
        """Each step of a block, and the keys that it meets."""
        if not self.sides.ring:
            places = list(range(self.n_key_tiles))
        else:
            places = [(first + step) % self.n_tiles for step in range(last - first + self.n_tiles // 2)]
        return [(step, slice(j * self.side, (j + 1) * self.side)) for step, j in enumerate(places)]

    def needs_shifts(self) -> bool:
        """Whether an exponent may be too large or too small, by the lengths of the rows; so too where one is NaN."""
        with np.errstate(over="ignore", invalid="ignore"):
            sq_norms = [float(np.einsum("nd,nd->n", x, x).max()) for x in {id(x): x for x in self.sides[:2]}.values()]
            largest = math.sqrt(max(sq_norms)) * math.sqrt(min(sq_norms)) if len(sq_norms) == 2 else sq_norms[0]
            return not largest * abs(float(self.sides.scale)) <= SAFE_EXPONENT[self.dtype.itemsize]

    def find_shifts(self) -> tuple[NDArray, NDArray]:
        """Largest exponents of rows and columns, zero where there is no finite one."""
        row_tops = np.full(self.n, -np.inf, self.dtype)
        column_tops = np.full(self.n_key_tiles * self.side, -np.inf, self.dtype)
        partial = [np.empty((self.n_steps, self.side), self.dtype) for _ in self.tiles]

        def work(worker: int, first: int, last: int) -> None:
            tiles.maxima_block(self.sides, first, last, self.tiles[worker], row_tops, partial[worker])

        def commit(worker: int, first: int, last: int) -> None:
            for step, columns in self.steps(first, last):
                np.maximum(column_tops[columns], partial[worker][step], out=column_tops[columns])

        self.run(work, commit)
        if self.sides.ring:
            row_tops = np.maximum(row_tops, column_tops[: self.n])
            column_tops = row_tops
        row_shifts, column_shifts = (np.where(np.isfinite(t), t, 0).astype(np.float64) for t in (row_tops, column_tops))
        return row_shifts, column_shifts

    def lower_shifts(self, shifts: tuple[NDArray, NDArray] | None) -> tuple[NDArray, NDArray]:
        """In the working dtype, one for each padded row and column; of length 0 where there are none."""
        if shifts is None:
            return np.empty(0, self.dtype), np.empty(0, self.dtype)
        # infinite where no sum is made: powers of zero
        rows, columns = self.sides.anchors, self.sides.keys
        return self._lengthened(shifts[0], rows, math.inf), self._lengthened(shifts[1], columns, math.inf)

    def factors(self, cotangents: NDArray, sums: NDArray, columns: bool = False) -> NDArray:
        """cotangents / sums of each padded row or column, zero where the cotangent is."""
        with np.errstate(divide="ignore", invalid="ignore"):
            quotients = np.where(cotangents == 0, 0.0, cotangents / sums)
        return self._lengthened(quotients, self.sides.keys if columns else self.sides.anchors)

    def _lengthened(self, values: NDArray, rows: NDArray, fill: float = 0.0) -> NDArray:
        longer = np.full(rows.shape[0], fill, self.dtype)
        longer[: values.size] = values
        return longer
