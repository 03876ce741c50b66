"""Rows that need not be in memory, as training reads them: shuffled by windows, embedded by chunks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import numpy as np
import torch
from torch import Tensor, nn

from fastdc._input import as_tensor, require_finite
from fastdc.data import RowSource, iter_chunks
from fastdc.data.windows import Windows
from fastdc.training.batch import embed

CHUNK_ROWS = 1 << 13  # of an embedding; a multiple of the rows of a network call


class SourceRows:
    """The rows of a source on a device, in the dtype of the network; indexed by row numbers like a tensor.

    Parameters
    ----------
    source : RowSource
    device : torch.device
    dtype : torch.dtype
    """

    def __init__(self, source: RowSource, device: torch.device, dtype: torch.dtype) -> None:
        self.source, self.device, self.dtype = source, device, dtype
        self.shape = source.shape
        self.is_cuda = device.type == "cuda"
        self._windows = Windows(source)
        self._is_checked = False

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """Some rows, in the order of their numbers (m,), or consecutive ones."""
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(len(self))
            return self._moved(self.source.rows(start, stop))
        return self._moved(self.source.take(rows.cpu().numpy()))

    def new_empty(self, *size: int) -> Tensor:
        """Room on the device."""
        return torch.empty(size, dtype=self.dtype, device=self.device)

    def windows(self, order: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """(numbers, rows) of windows that hold every row once, shuffled."""
        for numbers, x, places in self._windows.shuffled(order):
            yield numbers.to(self.device), self._moved(x)[places.to(self.device)]
        self._is_checked = True

    def embed(self, network: nn.Module, start: int = 0, stop: int | None = None) -> Tensor:
        """Embedding of rows ``start`` to ``stop``, (stop - start, n_latent), a chunk of rows at a time."""
        stop = len(self) if stop is None else stop
        if (start, stop) != (0, len(self)):
            spans = range(start, stop, CHUNK_ROWS)
            return torch.cat([embed(network, self[first : min(first + CHUNK_ROWS, stop)]) for first in spans])
        parts = []
        with closing(iter_chunks(self.source, CHUNK_ROWS, device=self.device)) as chunks:  # type: ignore[type-var]
            for first, x in chunks:
                if not self._is_checked:
                    require_finite(x, first_row=first)
                parts.append(embed(network, x.to(self.dtype)))
        self._is_checked = True
        return torch.cat(parts)

    def _moved(self, rows: np.ndarray) -> Tensor:
        return as_tensor(rows).to(self.device, self.dtype)
