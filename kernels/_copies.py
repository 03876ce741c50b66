"""Copies that kernels make of all rows: in memory, or in unnamed files where memory holds less than the rows.

A page of a file can be written out and dropped at any time, one of plain memory cannot. So a search that sorts its
rows, or moves them to their mean, takes rows of any number where its copies lie in files.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdc.kernels._rows import numpy_dtype

LEAST_BYTES = 1 << 26  # of a copy that goes to a file
ROWS_AT_ONCE = 1 << 14  # that are copied or looked at, so that what lies between takes little

_IN_FILES: ContextVar[bool] = ContextVar("copies_in_files", default=False)


@contextmanager
def copies_in_files() -> Iterator[None]:
    """Copies of rows on the CPU that are made within, of 64 MB and more, lie in the folder for temporary files."""
    before = _IN_FILES.set(True)
    try:
        yield
    finally:
        _IN_FILES.reset(before)


def copy_space(shape: tuple[int, ...], dtype: np.dtype) -> NDArray:
    """An array of any content for a copy of rows.

    Raises
    ------
    OSError
        If the folder for temporary files has no room for it.
    """
    n_bytes = math.prod(shape) * dtype.itemsize
    if not _IN_FILES.get() or n_bytes < LEAST_BYTES:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile() as file:
        try:
            _reserve(file.fileno(), n_bytes)
        except OSError as error:
            folder = tempfile.gettempdir()
            raise OSError(
                error.errno,
                f"{error.strerror}: a copy of the rows takes {n_bytes:,} bytes in {folder}; make room, or set the "
                "environment variable TMPDIR to a folder that has it",
            ) from error
        return np.frombuffer(mmap.mmap(file.fileno(), n_bytes), dtype).reshape(shape)


def _reserve(descriptor: int, n_bytes: int) -> None:
    """Room on the disk, where it can be asked for: a full disk shows here, and not where a page is written."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, n_bytes)
    else:
        os.truncate(descriptor, n_bytes)


def copy_tensor(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The same as a tensor; on another device than the CPU in its memory."""
    if device.type != "cpu" or dtype not in (torch.float32, torch.float64):
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.from_numpy(copy_space(shape, numpy_dtype(dtype)))


def copy_rows(x: Tensor, rows: Tensor) -> Tensor:
    """``x[rows]`` for numbers or a mask of rows."""
    numbers = rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows
    return torch.index_select(x, 0, numbers, out=copy_tensor((len(numbers), *x.shape[1:]), x.dtype, x.device))


def map_rows(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """``function(x)``, of the shape, dtype and device of x, for a function that treats each row alone."""
    if not x.is_cpu:
        return function(x)
    out = copy_tensor(tuple(x.shape), x.dtype, x.device)
    for rows, place in zip(x.split(ROWS_AT_ONCE), out.split(ROWS_AT_ONCE)):
        place.copy_(function(rows))
    return out
