"""Row sources: a matrix whose rows are read a part at a time, wherever they lie."""

from __future__ import annotations

import mmap
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

OPEN_AT_ONCE = 16  # files of a folder that are held open


class RowSource(ABC):
    """A matrix of shape (n_samples, n_features) of float32 or float64, read a part at a time.

    A source of one's own needs ``shape``, ``dtype`` and ``read``; the rest follows. It is read by one thread at a
    time, which need not be the one that made it. ``numpy.asarray(source)`` reads all of it.

    Attributes
    ----------
    shape : tuple of two int
    dtype : numpy dtype
        float32 or float64: what ``read`` gives.
    near : int
        Rows so near each other that ``take`` reads them at once.

    Examples
    --------
    >>> class Squares(RowSource):
    ...     shape, dtype = (1000, 1), np.dtype(np.float32)
    ...
    ...     def read(self, start, stop, out):
    ...         out[:, 0] = np.arange(start, stop) ** 2
    >>> Squares().take(np.array([3, 999])).tolist()
    [[9.0], [998001.0]]
    """

    shape: tuple[int, int]
    dtype: np.dtype
    near: int = 1024

    @abstractmethod
    def read(self, start: int, stop: int, out: np.ndarray) -> None:
        """Write rows ``start`` to ``stop`` into ``out`` of shape (stop - start, n_features), C order, ``dtype``."""

    def view(self, start: int, stop: int) -> np.ndarray | Tensor | None:
        """The rows where they lie, in ``dtype`` and C order; None where they must be read."""
        return None

    def will_need(self, start: int, stop: int) -> None:
        """Told before these rows are asked for; a source may begin to fetch them."""
        return None

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows as an array, not to be written to: a view where that is possible."""
        seen = self.view(start, stop)
        if seen is not None:
            return seen.cpu().numpy() if isinstance(seen, Tensor) else seen
        out = np.empty((stop - start, self.shape[1]), self.dtype)
        self.read(start, stop, out)
        return out

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Some rows, in the order of ``rows`` (m,), repeats allowed: an array of shape (m, n_features)."""
        order = np.argsort(rows, kind="stable")
        wanted = np.asarray(rows)[order]
        if len(wanted) and (wanted[0] < 0 or wanted[-1] >= len(self)):
            raise IndexError(f"rows must lie in [0, {len(self)}), got {wanted[0]} to {wanted[-1]}")
        taken = np.empty((len(wanted), self.shape[1]), self.dtype)
        first = 0
        while first < len(wanted):
            last = int(np.searchsorted(wanted, wanted[first] + self.near))
            start, stop = int(wanted[first]), int(wanted[last - 1]) + 1
            taken[order[first:last]] = self.rows(start, stop)[wanted[first:last] - start]
            first = last
        return taken

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        whole = self.rows(0, len(self))
        return np.array(whole, dtype=dtype) if copy else np.asarray(whole, dtype=dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={self.shape}, dtype={self.dtype})"


class ArrayRows(RowSource):
    """Rows of a NumPy array or memory map, of any real dtype, order and strides. Nothing is copied beforehand."""

    def __init__(self, array: np.ndarray) -> None:
        if isinstance(array, np.ma.MaskedArray):
            raise TypeError("X is a masked array, whose mask would be lost; fill it or drop its rows first")
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
        end = begin + rows.nbytes
        begin -= begin % mmap.PAGESIZE
        if end > begin:
            mapped.madvise(mmap.MADV_WILLNEED, begin, end - begin)


class TensorRows(RowSource):
    """Rows of a tensor, on whatever device."""

    def __init__(self, tensor: Tensor) -> None:
        if tensor.layout != torch.strided:
            raise TypeError(f"X is a sparse tensor ({tensor.layout}), dense data is required; use X.to_dense()")
        self.shape = check_matrix(tuple(tensor.shape))
        self.dtype = _promoted_torch(tensor.dtype)
        self.tensor = tensor.detach()

    def view(self, start: int, stop: int) -> Tensor | None:
        rows = self.tensor[start:stop]
        return rows if str(rows.dtype) == f"torch.{self.dtype}" and rows.is_contiguous() else None

    def read(self, start: int, stop: int, out: np.ndarray) -> None:
        torch.from_numpy(out).copy_(self.tensor[start:stop])


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
        self.starts = np.cumsum([0, *map(len, parts)]).tolist()
        self.shape = self.starts[-1], parts[0].shape[1]
        self.dtype = np.result_type(*(part.dtype for part in parts))
        self.near = max(part.near for part in parts)

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
                target[:] = part.rows(begin, end)

    def will_need(self, start: int, stop: int) -> None:
        for part, begin, end, _ in self._overlaps(start, stop):
            part.will_need(begin, end)

    def _part_of(self, row: int) -> int:
        return min(bisect_right(self.starts, row), len(self.parts)) - 1

    def _overlaps(self, start: int, stop: int) -> Iterator[tuple[RowSource, int, int, int]]:
        """(part, its first row, its last row, where they go) of each part that holds some of the rows."""
        for i in range(self._part_of(start), len(self.parts)):
            first, row = self.starts[i], max(start, self.starts[i])
            if row >= stop:
                return
            yield self.parts[i], row - first, min(stop, self.starts[i + 1]) - first, row - start


class ReopenedRows(RowSource):
    """A source that is opened when it is read, so that a folder of thousands of files needs few open ones.

    ``opened`` is shared by the files of a folder: the sources that are open, the one used last at its end.
    """

    def __init__(self, open_source: Callable[[], RowSource], opened: OrderedDict[int, RowSource]) -> None:
        self._open_source, self._opened = open_source, opened
        source = self._source()
        self.shape, self.dtype, self.near = source.shape, source.dtype, source.near

    def view(self, start: int, stop: int) -> np.ndarray | Tensor | None:
        return self._source().view(start, stop)

    def read(self, start: int, stop: int, out: np.ndarray) -> None:
        self._source().read(start, stop, out)

    def will_need(self, start: int, stop: int) -> None:
        self._source().will_need(start, stop)

    def _source(self) -> RowSource:
        source = self._opened.pop(id(self), None) or self._open_source()
        self._opened[id(self)] = source
        while len(self._opened) > OPEN_AT_ONCE:
            self._opened.popitem(last=False)
        return source


def check_matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """The shape, if it is that of a matrix with rows and columns."""
    if len(shape) != 2:
        remedy = {0: "one row is x[None, None]", 1: "use x[:, None]"}.get(len(shape), "use x.reshape(len(x), -1)")
        raise ValueError(f"points must be 2-D (n_samples, n_features), this is {shape}; {remedy}")
    if 0 in shape:
        raise ValueError(f"no points, the array has shape {shape}")
    return int(shape[0]), int(shape[1])


def promoted(dtype: Any) -> np.dtype:
    """float32 or float64, whichever holds every value of a real dtype (of long doubles the nearest)."""
    dtype = np.dtype(dtype)
    if dtype.kind not in "fiub":
        raise TypeError(f"points must be real numbers, these are {dtype}")
    return min(np.result_type(dtype.newbyteorder("="), np.float32), np.dtype(np.float64))


def _promoted_torch(dtype: torch.dtype) -> np.dtype:
    if dtype == torch.bfloat16:
        return np.dtype(np.float32)
    try:
        return promoted(str(dtype).removeprefix("torch."))
    except TypeError:  # complex numbers, or a type that NumPy does not know
        raise TypeError(f"points must be real numbers, these are {dtype}") from None


def _mmap_of(array: Any) -> mmap.mmap | None:
    """The memory map beneath an array or its bases."""
    while array is not None:
        if isinstance(array, mmap.mmap):
            return array
        array = getattr(array, "base", None)
    return None
