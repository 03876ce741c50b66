"""Rows that need not be in memory, as training reads them: shuffled by windows, embedded by chunks."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import torch
from torch import Tensor, nn

from fastdc._input import as_tensor, require_finite
from fastdc.data import RowSource, iter_chunks
from fastdc.training.batch import embed

WINDOW_BYTES = 1 << 26  # of rows among which an epoch shuffles; two are held, one being read
WINDOW_BLOCKS = 64  # runs of consecutive rows, from all over the source, that make a window
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
        rows = max(WINDOW_BLOCKS, WINDOW_BYTES // (source.shape[1] * source.dtype.itemsize))
        self.run = max(1, rows // WINDOW_BLOCKS)  # rows of a block
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
        """(numbers, rows) of windows that hold every row once: shuffled runs of rows, and shuffled within a window.

        While one window is at work a thread reads the next.
        """
        n_runs = -(-len(self) // self.run)
        shuffled = torch.randperm(n_runs, generator=order).split(WINDOW_BLOCKS)
        orders = [torch.randperm(self._count(runs), generator=order) for runs in shuffled]
        with ThreadPoolExecutor(1, thread_name_prefix="fastdc-reader") as reader:
            coming = reader.submit(self._read, shuffled[0])
            for i, within in enumerate(orders):
                numbers, x = coming.result()
                if i + 1 < len(orders):
                    coming = reader.submit(self._read, shuffled[i + 1])
                yield numbers[within].to(self.device), self._moved(x)[within.to(self.device)]
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

    def _count(self, runs: Tensor) -> int:
        return int((((runs + 1) * self.run).clamp(max=len(self)) - runs * self.run).sum())

    def _read(self, runs: Tensor) -> tuple[Tensor, np.ndarray]:
        """(numbers, rows) of whole runs, on the host."""
        numbers, parts = [], []
        for run in runs.tolist():
            start, stop = run * self.run, min((run + 1) * self.run, len(self))
            part = self.source.rows(start, stop)
            if not self._is_checked:
                require_finite(as_tensor(part), first_row=start)
            numbers.append(torch.arange(start, stop))
            parts.append(part)
        return torch.cat(numbers), np.concatenate(parts)

    def _moved(self, rows: np.ndarray) -> Tensor:
        return as_tensor(rows).to(self.device, self.dtype)
