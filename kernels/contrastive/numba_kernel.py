"""CPU kernel: one pass over tiles of products for the sums, another that makes them again for the gradients.

Sums over a row are float32 within a tile and float64 beyond; those over a column are float32 within a block of at
most 1024 anchors and float64 beyond. Blocks are committed in order. Where both passes are in one call, as in
``numba_loss.py``, exponentials that fit ``HELD_BYTES`` are kept from the first to the second.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdc.kernels._parallel import n_workers, run_blocks
from fastdc.kernels._precision import working_dtype
from fastdc.kernels._rows import numpy_dtype
from fastdc.kernels._simd import prepare
from fastdc.kernels._workspace import workspace
from fastdc.kernels.contrastive import numba_tiles as tiles
from fastdc.kernels.contrastive.numba_units import Units, make_units, units_gradient
from fastdc.kernels.contrastive.sums import STATE, finish_sums

SAFE_EXPONENT = {4: 80.0, 8: 500.0}  # by itemsize: powers up to it, their sums and ratios are normal numbers
TILE, SMALL_TILE = 128, 64  # sides of a tile
SMALL = 1024  # anchors up to which tiles are small, so that there are enough of them for all threads
LARGEST_BLOCK = 8  # tiles of anchors
HELD_BYTES = 1 << 22  # exponentials that one call may keep
Pair = tuple[NDArray, NDArray]  # of rows and of columns


def contrast(
    anchors: Tensor,
    keys: Tensor | None,
    positives: Tensor | None,
    scale: float,
    integers: list[int],
    precision: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See ``custom_ops.py``."""
    return _job_of(anchors, keys, positives, scale, integers).sums()


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
    job = _job_of(*inputs, scale, integers)
    of_rows, of_columns = (cotangent.double().numpy() for cotangent in cotangents)
    largest = max(float(np.abs(cotangent).max(initial=0.0)) for cotangent in (of_rows, of_columns))
    unit = largest if 0.0 < largest < math.inf else 1.0  # cotangents near one, since sums down to 2^-80 divide them
    by_rows, by_keys = job.gradients(states, (of_rows / unit, of_columns / unit), needs)
    factor = job.dtype.type(unit * scale)
    grad_anchors, grad_keys = inputs[0].new_empty(0), inputs[0].new_empty(0)
    if needs[0]:
        grad_anchors = units_gradient(job.anchors, slice(0, job.n), by_rows, factor)
    if needs[1] and job.keys is not None:
        grad_keys = units_gradient(job.keys, slice(0, job.keys.n), by_keys, factor)
    return grad_anchors, grad_keys


def _job_of(anchors: Tensor, keys: Tensor | None, positives: Tensor | None, scale: float, integers: list[int]) -> Job:
    dtype, side = numpy_dtype(working_dtype(anchors)), side_of(anchors.shape[0])
    rows, of_keys = (None if x is None else make_units([x], False, side, dtype) for x in (anchors, keys))
    assert rows is not None
    return Job(rows, of_keys, None if positives is None else positives.numpy(), scale, integers)


def side_of(n_anchors: int) -> int:
    return SMALL_TILE if n_anchors <= SMALL else TILE


class Job:
    """One call's inputs as the tiles want them, and a tile for each worker."""

    def __init__(
        self, anchors: Units, keys: Units | None, positives: NDArray | None, scale: float, integers: list[int]
    ) -> None:
        self.anchors, self.keys, self.positives = anchors, keys, positives
        self.dtype, self.n, self.side = anchors.rows.dtype, anchors.n, side_of(anchors.n)
        prepare(self.dtype)
        self_offset, n_columns = integers
        ring = keys is None
        of_keys = anchors if keys is None else keys
        none = np.empty((0, *anchors.rows.shape[1:], self.side), self.dtype)
        self.sides = tiles.Sides(
            anchors=anchors.rows,
            keys=of_keys.rows,
            anchor_columns=none,
            key_columns=self._transposed(of_keys.rows),
            positives=np.empty(0, np.int64) if positives is None else positives,
            scale=self.dtype.type(scale / math.log(2.0)),
            n_anchors=self.n,
            n_keys=of_keys.n,
            n_columns=n_columns,
            self_offset=0 if ring else self_offset,
            ring=ring,
        )
        self.n_tiles, self.n_key_tiles = (len(units.rows) // self.side for units in (anchors, of_keys))
        self.block = max(1, min(LARGEST_BLOCK, -(-self.n_tiles // 16)))
        self.n_steps = self.block + self.n_tiles // 2 if ring else self.n_key_tiles
        workers = n_workers(-(-self.n_tiles // self.block))
        self.tiles = [np.empty((self.side, self.side), self.dtype) for _ in range(workers)]
        self.held = np.empty((0, 0, self.side, self.side), self.dtype)

    def hold(self) -> None:
        """Keep exponentials for the gradients, if they are few enough."""
        shape = self.n_tiles, self.n_tiles // 2 + 1 if self.sides.ring else self.n_key_tiles, self.side, self.side
        if math.prod(shape) * self.dtype.itemsize <= HELD_BYTES:
            self.held = workspace("contrast", shape, self.dtype)

    def sums(self, more: NDArray | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rows and columns as in ``custom_ops.py``, and their states; ``more`` (n,) are sums over further keys.

        The latter without shifts: not where :meth:`needs_shifts`.
        """
        shifts = self.find_shifts() if self.needs_shifts() else None
        held = self.held if shifts is None else self.held[:0]
        lower = self.lower_shifts(shifts)
        row_sums, column_sums = np.zeros(self.n), np.zeros(self.n_key_tiles * self.side)
        if more is not None:
            row_sums += more
        exponents = np.full(self.n, np.nan)  # NaN stays where a positive is no key
        step_sums = [np.zeros((self.n_steps, self.side), self.dtype) for _ in self.tiles]

        def work(worker: int, first: int, last: int) -> None:
            results = row_sums, exponents, step_sums[worker]
            tiles.sums_block(self.sides, first, last, self.tiles[worker], held, lower, *results)

        def commit(worker: int, first: int, last: int) -> None:
            tiles.add_sums(self.sides, first, last, step_sums[worker], column_sums)

        self.run(work, commit)
        if self.sides.ring:
            row_sums += column_sums[: self.n]
        n_columns = self.sides.n_columns
        row_shifts, column_shifts = (np.zeros(self.n), np.zeros(n_columns)) if shifts is None else shifts
        of_rows = of_columns = None
        if self.positives is not None:
            of_rows = torch.from_numpy(exponents)
        rows, row_state = finish_sums(torch.from_numpy(row_shifts), torch.from_numpy(row_sums), of_rows)
        if n_columns == 0:
            return rows, rows.new_empty(0), row_state, rows.new_empty((STATE, 0))
        if of_rows is not None:
            of_columns = of_rows.new_full((n_columns,), torch.nan)
            of_columns[torch.from_numpy(self.positives)] = of_rows
        of_keys = torch.from_numpy(column_shifts[:n_columns]), torch.from_numpy(column_sums[:n_columns])
        columns, column_state = finish_sums(*of_keys, of_columns)
        return rows, columns, row_state, column_state

    def gradients(
        self,
        states: tuple[Tensor, Tensor],
        cotangents: tuple[NDArray, NDArray],
        needs: list[bool],
        pulls: NDArray | None = None,
    ) -> tuple[NDArray, NDArray]:
        """Gradients of anchors and keys over the scale, (whole tiles, padded), of length 0 where not needed.

        ``pulls`` (whole tiles, padded) are sums of the exponentials of further keys times these.
        """
        (of_rows, of_columns), (row_state, column_state) = cotangents, (state.numpy() for state in states)
        if self.sides.ring:
            column_state, of_columns = row_state, of_rows
        missing = (of_rows * row_state[2]).astype(self.dtype), (of_columns * column_state[2]).astype(self.dtype)
        shifted = row_state[0].any() or column_state[0].any()
        row_factors = self.factors(of_rows, row_state[1])
        ring = self.sides.ring
        factors = row_factors, row_factors if ring else self.factors(of_columns, column_state[1], columns=True)
        width = self.sides.anchors.shape[1]
        by_rows = np.zeros(self.sides.anchors.shape if needs[0] else (0, width), self.dtype)
        if needs[0] and pulls is not None:
            np.multiply(pulls, factors[0][:, None], out=by_rows)
        if len(self.held) > 0 and not shifted:
            return self._held_gradients(factors, missing, needs, by_rows)
        shifts = self.lower_shifts((row_state[0], column_state[0]) if shifted else None)
        return self._new_gradients(shifts, factors, missing, needs, by_rows)

    def _held_gradients(
        self, factors: Pair, missing: Pair, needs: list[bool], by_rows: NDArray
    ) -> tuple[NDArray, NDArray]:
        scratch = [np.empty((2, self.side, self.side), self.dtype) for _ in self.tiles]
        by_keys = np.zeros(self.sides.keys.shape if needs[1] else (0, by_rows.shape[1]), self.dtype)

        def row_work(worker: int, first: int, last: int) -> None:
            given = scratch[worker], self.held, factors, missing
            tiles.held_gradients_block(self.sides, first, last, *given, False, by_rows)

        def key_work(worker: int, first: int, last: int) -> None:
            given = scratch[worker], self.held, factors, missing
            tiles.held_gradients_block(self.sides, first, last, *given, True, by_keys)

        if needs[0]:
            run_blocks(self.n_tiles, self.block, row_work)
        if needs[1]:
            run_blocks(self.n_key_tiles, self.block, key_work)
        return by_rows, by_keys

    def _new_gradients(
        self, shifts: Pair, factors: Pair, missing: Pair, needs: list[bool], by_rows: NDArray
    ) -> tuple[NDArray, NDArray]:
        need_columns = self.sides.ring or needs[1]
        sides = self.sides._replace(anchor_columns=self.anchor_columns()) if need_columns else self.sides
        width, side = self.sides.anchors.shape[1], self.side
        by_columns = np.zeros((self.n_key_tiles if need_columns else 0, width, side), self.dtype)
        partial = [np.zeros((self.n_steps if need_columns else 0, width, side), self.dtype) for _ in self.tiles]

        def work(worker: int, first: int, last: int) -> None:
            given, results = (shifts, factors, missing), (by_rows, partial[worker])
            tiles.gradients_block(sides, first, last, self.tiles[worker], *given, *results)

        def commit(worker: int, first: int, last: int) -> None:
            if need_columns:
                tiles.add_steps(sides, first, last, side, partial[worker], by_columns)

        self.run(work, commit)
        if not need_columns:
            return by_rows, by_columns
        total = by_rows if self.sides.ring else np.zeros_like(self.sides.keys)
        tiles.add_transposed(by_columns, total)
        return (total, by_columns) if self.sides.ring else (by_rows, total)

    def anchor_columns(self) -> NDArray:
        """The anchors, each tile transposed."""
        return self.sides.key_columns if self.sides.ring else self._transposed(self.sides.anchors)

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

    def needs_shifts(self, sq_length: float = 0.0) -> bool:
        """Whether an exponent may be too large or too small, by the lengths of the rows; so too where one is NaN.

        sq_length: the largest of further keys.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            own, *others = (
                float(np.einsum("nd,nd->n", x, x).max()) for x in {id(x): x for x in self.sides[:2]}.values()
            )
            largest = math.sqrt(own) * math.sqrt(np.max([sq_length, *(others or [own])]))
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
