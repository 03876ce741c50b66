"""Rows of a source in a random order, without an order of all rows: shuffled by windows."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastdc._input import as_tensor, require_finite
from fastdc.data.sources import RowSource

WINDOW_BYTES = 1 << 26  # of rows that are shuffled at a time; two windows are held, one being read
WINDOW_BLOCKS = 64  # runs of consecutive rows, from all over the source, that make a window


class Window(NamedTuple):
    """Some rows in a random order.

    ``numbers`` (m,) are those of all its rows. Of these the source has ``x`` (own, n_features), as read; ``places``
    (own,) are their places in ``x``, in the order of the numbers.
    """

    numbers: Tensor
    x: np.ndarray
    places: Tensor


class Windows:
    """The rows of a source, or of a matrix of which it is a part, in windows that hold every row once.

    Parameters
    ----------
    source : RowSource
    first, total : int
        Number of its first row, and of all rows of the matrix; None is its own number of rows.
    check_finite : bool
        Raise where an entry is NaN or infinite, in the first pass over the rows.

    Attributes
    ----------
    run : int
        Consecutive rows that are read at once.
    """

    def __init__(
        self, source: RowSource, first: int = 0, total: int | None = None, *, check_finite: bool = True
    ) -> None:
        self.source, self.first = source, first
        self.total = len(source) if total is None else total
        rows = max(WINDOW_BLOCKS, WINDOW_BYTES // (source.shape[1] * source.dtype.itemsize))
        self.run = max(1, rows // WINDOW_BLOCKS)
        self._is_checked = not check_finite

    def shuffled(self, order: torch.Generator) -> Generator[Window, None, None]:
        """Shuffled runs of rows, and shuffled within a window. While one window is at work a thread reads the next."""
        n_runs = -(-self.total // self.run)
        chosen = [runs.sort().values for runs in torch.randperm(n_runs, generator=order).split(WINDOW_BLOCKS)]
        orders = [torch.randperm(self._count(runs), generator=order) for runs in chosen]
        with ThreadPoolExecutor(1, thread_name_prefix="fastdc-reader") as reader:
            coming = reader.submit(self._read, chosen[0])
            for i, within in enumerate(orders):
                numbers, x = coming.result()
                if i + 1 < len(orders):
                    coming = reader.submit(self._read, chosen[i + 1])
                yield self._window(numbers, x, within)
        self._is_checked = True

    def _window(self, numbers: Tensor, x: np.ndarray, within: Tensor) -> Window:
        shuffled = numbers[within]
        if len(x) == len(numbers):
            return Window(shuffled, x, within)
        places = ((numbers >= self.first) & (numbers < self.first + len(self.source))).cumsum(0) - 1
        is_own = (shuffled >= self.first) & (shuffled < self.first + len(self.source))
        return Window(shuffled, x, places[within][is_own])

    def _count(self, runs: Tensor) -> int:
        return int((((runs + 1) * self.run).clamp(max=self.total) - runs * self.run).sum())

    def _read(self, runs: Tensor) -> tuple[Tensor, np.ndarray]:
        """Numbers of the rows of whole runs, and those that the source has."""
        numbers, parts = [], [np.empty((0, self.source.shape[1]), self.source.dtype)]
        for run in runs.tolist():
            start, stop = run * self.run, min((run + 1) * self.run, self.total)
            numbers.append(torch.arange(start, stop))
            start, stop = max(start - self.first, 0), min(stop - self.first, len(self.source))
            if start >= stop:
                continue
            parts.append(self.source.rows(start, stop))
            if not self._is_checked:
                require_finite(as_tensor(parts[-1]), first_row=self.first + start)
        return torch.cat(numbers), np.concatenate(parts)
