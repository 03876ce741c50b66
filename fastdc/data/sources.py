"""Row sources: a matrix whose rows are read a part at a time, wherever they lie."""

from __future__ import annotations

import mmap
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


class RowSource(ABC):
    """A matrix of shape (n_samples, n_features) of float32 or float64, read a part at a time.

    A source of one's own needs ``shape``, ``dtype`` and ``read``; the rest follows.

    Attributes
    ----------
    shape : tuple of two int
    dtype : numpy dtype
        float32 or float64: what ``read`` gives.
    """

    shape: tuple[int, int]
    dtype: np.dtype

    @abstractmethod
    def read(self, start: int, stop: int, out: np.ndarray) -> None:
        """Write rows ``start`` to ``stop`` into ``out`` of shape (stop - start, n_features), C order, ``dtype``."""

    def view(self, start: int, stop: int) -> np.ndarray | Tensor | None:
        """The rows where they lie, in ``dtype`` and C order; None where they must be read."""
        return None

    def will_need(self, start: int, stop: int) -> None:
        """Told before these rows are asked for; a source may begin to fetch them."""

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Some rows, in the order of ``rows`` (m,), repeats allowed: an array of shape (m, n_features)."""
        order = np.argsort(rows, kind="stable")
        wanted = np.asarray(rows)[order]
        if len(wanted) and (wanted[0] < 0 or wanted[-1] >= len(self)):
            raise IndexError(f"rows must lie in [0, {len(self)}), got {wanted[0]} to {wanted[-1]}")
        taken = np.empty((len(wanted), self.shape[1]), self.dtype)
        first = 0
        while first < len(wanted):  # rows that lie near each other are read at once
            last = int(np.searchsorted(wanted, wanted[first] + TAKEN_TOGETHER))
            start, stop = int(wanted[first]), int(wanted[last - 1]) + 1
            near = self._rows(start, stop)
            taken[order[first:last]] = near[wanted[first:last] - start]
            first = last
        return taken

    def _rows(self, start: int, stop: int) -> np.ndarray:
        seen = self.view(start, stop)
        if seen is not None:
            return seen.detach().cpu().numpy() if isinstance(seen, Tensor) else seen
        out = np.empty((stop - start, self.shape[1]), self.dtype)
        self.read(start, stop, out)
        return out

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={self.shape}, dtype={self.dtype})"


TAKEN_TOGETHER = 1024  # rows; a part of a file of this many is read for one of them


class ArrayRows(RowSource):
    """Rows of a NumPy array or memory map, of any real dtype, order and strides. Nothing is copied beforehand."""

    def __init__(self, array: np.ndarray) -> None:
        self.shape = check_matrix(tuple(array.shape))
        self.dtype = promoted(array.dtype)
        self._array = array

    def view(self, start: int, stop: int) -> np.ndarray | None:
        rows = self._array[start:stop]
        native = rows.dtype == self.dtype and rows.dtype.isnative
        return rows if native and rows.flags.c_contiguous and rows.flags.aligned else None

    def read(self, start: int, stop: int, out: np.ndarray) -> None:
        with np.errstate(over="ignore", invalid="ignore"):  # of long doubles: the check for infinity reports it
            np.copyto(out, self._array[start:stop], casting="unsafe")

    def will_need(self, start: int, stop: int) -> None:
        """Of a memory map: the kernel reads ahead."""
        rows = self._array[start:stop]
        mapped = _mmap_of(rows)
        if mapped is None or not rows.flags.c_contiguous or not hasattr(mapped, "madvise"):
            return
        base = np.frombuffer(mapped, np.uint8).__array_interface__["data"][0]
        begin = rows.__array_interface__["data"][0] - base
        begin -= begin % mmap.PAGESIZE
        length = min(rows.nbytes + mmap.PAGESIZE, len(mapped) - begin)
        if length > 0:
            mapped.madvise(mmap.MADV_WILLNEED, begin, length)


class TensorRows(RowSource):
    """Rows of a tensor, on whatever device."""

    def __init__(self, tensor: Tensor) -> None:
        if tensor.layout != torch.strided:
            raise TypeError(f"X is a sparse tensor ({tensor.layout}), dense data is required; use X.to_dense()")
        self.shape = check_matrix(tuple(tensor.shape))
        self.dtype = _promoted_torch(tensor.dtype)
        self._tensor = tensor.detach()

    def view(self, start: int, stop: int) -> Tensor | None:
        rows = self._tensor[start:stop]
        return rows if str(rows.dtype).endswith(self.dtype.name) and rows.is_contiguous() else None

    def read(self, start: int, stop: int, out: np.ndarray) -> None:
        torch.from_numpy(out).copy_(self._tensor[start:stop])


class ConcatenatedRows(RowSource):
    """Several sources one after another, such as the shards of a folder.

    All have the same number of features; the dtype is float64 where one of them is.
    """

    def __init__(self, parts: Sequence[RowSource], names: Sequence[str] | None = None) -> None:
        if not parts:
            raise ValueError("there must be at least one part, got none")
        for i, part in enumerate(parts):
            if part.shape[1] != parts[0].shape[1]:
                this, first = (names[i], names[0]) if names else (f"part {i}", "part 0")
                raise ValueError(
                    f"{this} has {part.shape[1]} features, {first} has {parts[0].shape[1]}; all parts must agree"
                )
        self.parts = list(parts)
        self.starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).tolist()
        self.shape = self.starts[-1], parts[0].shape[1]
        self.dtype = np.result_type(*(part.dtype for part in parts))

    def view(self, start: int, stop: int) -> np.ndarray | Tensor | None:
        i = self._part_of(start)
        if stop > self.starts[i + 1] or self.parts[i].dtype != self.dtype:
            return None
        return self.parts[i].view(start - self.starts[i], stop - self.starts[i])

    def read(self, start: int, stop: int, out: np.ndarray) -> None:
        for part, begin, end, offset in self._overlaps(start, stop):
            target = out[offset : offset + end - begin]
            if part.dtype == self.dtype:
                part.read(begin, end, target)
            else:
                target[:] = part._rows(begin, end)

    def will_need(self, start: int, stop: int) -> None:
        for part, begin, end, _ in self._overlaps(start, stop):
            part.will_need(begin, end)

    def _part_of(self, row: int) -> int:
        return min(bisect_right(self.starts, row), len(self.parts)) - 1

    def _overlaps(self, start: int, stop: int) -> list[tuple[RowSource, int, int, int]]:
        """(part, its first row, its last row, where they go) of each part that holds some of the rows."""
        found = []
        i, row = self._part_of(start), start
        while row < stop:
            end = min(stop, self.starts[i + 1])
            if end > row:
                found.append((self.parts[i], row - self.starts[i], end - self.starts[i], row - start))
                row = end
            i += 1
        return found


def check_matrix(shape: tuple[int, ...], name: str = "X") -> tuple[int, int]:
    """The shape, if it is that of a matrix with rows and columns."""
    if len(shape) != 2:
        remedy = "reshape(-1, 1)" if len(shape) == 1 else "reshape(len(X), -1)"
        raise ValueError(f"{name} must be 2-D (n_samples, n_features), it has shape {shape}; use {remedy}")
    if 0 in shape:
        raise ValueError(f"{name} holds no points: its shape is {shape}")
    return shape


def promoted(dtype: Any) -> np.dtype:
    """float32 or float64, whichever holds every value of a real dtype (of long doubles the nearest)."""
    dtype = np.dtype(dtype)
    if dtype.kind not in "fiub":
        raise TypeError(f"X has dtype {dtype}; pass numbers")
    return min(np.result_type(dtype.newbyteorder("="), np.float32), np.dtype(np.float64))


def _promoted_torch(dtype: torch.dtype) -> np.dtype:
    if dtype == torch.bfloat16:
        return np.dtype(np.float32)
    if dtype.is_complex:
        raise TypeError(f"X is {dtype}; pass real numbers")
    return promoted(str(dtype).removeprefix("torch."))


def _mmap_of(array: Any) -> mmap.mmap | None:
    """The memory map beneath an array or its bases."""
    while array is not None:
        if isinstance(array, mmap.mmap):
            return array
        array = getattr(array, "base", None)
    return None
