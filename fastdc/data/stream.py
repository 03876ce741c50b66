"""Chunks of a row source as tensors, the next one being read while one is at work."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastdc._input import as_tensor
from fastdc.data.sources import RowSource

BUFFERS = 3  # one at work, one ready, one being filled


class Chunk(NamedTuple):
    """Rows ``start`` to ``start + len(x)`` of a source; ``x`` is valid until the next chunk is asked for."""

    start: int
    x: Tensor


def iter_chunks(
    source: RowSource,
    rows: int,
    *,
    start: int = 0,
    stop: int | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[Chunk]:
    """The rows of a source in order, ``rows`` at a time.

    Parameters
    ----------
    source : RowSource
    rows : int
        Of a chunk; the last may have fewer.
    start, stop : int
        First row, and the one after the last; all rows by default.
    device : torch.device or str
        Where the chunks shall lie.

    Yields
    ------
    Chunk
        ``x`` (at most ``rows``, n_features) in the source's dtype, not to be written to.

    Notes
    -----
    Rows that lie in memory or in a memory map are seen where they are. Others are read by a thread into three
    buffers of ``rows`` rows, two of which are ahead of the caller. On a GPU the buffers are pinned, and a chunk is
    copied while the one before is at work. An error in the reading thread is raised here.
    """
    stop = len(source) if stop is None else stop
    if rows < 1:
        raise ValueError(f"rows must be at least 1, got {rows}")
    if not 0 <= start <= stop <= len(source):
        raise ValueError(f"start and stop must be 0 <= start <= stop <= {len(source)}, got {start} and {stop}")
    device = torch.device(device)
    bounds = [(i, min(i + rows, stop)) for i in range(start, stop, rows)]
    if device.type == "cpu" and all(source.view(*b) is not None for b in (bounds[:1] + bounds[-1:])):
        yield from _seen(source, bounds)
    else:
        with contextlib.closing(_read_ahead(source, bounds, rows, device)) as chunks:
            yield from chunks


def _seen(source: RowSource, bounds: list[tuple[int, int]]) -> Iterator[Chunk]:
    """Chunks where they lie; one that cannot be seen, such as over a shard's edge, is read."""
    source.will_need(*bounds[0]) if bounds else None
    for i, (start, stop) in enumerate(bounds):
        if i + 1 < len(bounds):
            source.will_need(*bounds[i + 1])
        rows = source.view(start, stop)
        if rows is None:
            rows = np.empty((stop - start, source.shape[1]), source.dtype)
            source.read(start, stop, rows)
        yield Chunk(start, rows if isinstance(rows, Tensor) else as_tensor(rows))


def _read_ahead(
    source: RowSource, bounds: list[tuple[int, int]], rows: int, device: torch.device
) -> Iterator[Chunk]:
    pinned = device.type == "cuda"
    dtype = torch.float64 if source.dtype == np.float64 else torch.float32
    shape = min(rows, len(source)), source.shape[1]
    buffers = [torch.empty(shape, dtype=dtype, pin_memory=pinned) for _ in range(min(BUFFERS, len(bounds)))]
    free: queue.SimpleQueue[Tensor | None] = queue.SimpleQueue()
    full: queue.SimpleQueue[tuple[int, Tensor, Tensor] | BaseException] = queue.SimpleQueue()
    for buffer in buffers:
        free.put(buffer)
    reader = threading.Thread(target=_fill, args=(source, bounds, free, full), name="fastdc-reader", daemon=True)
    reader.start()
    try:
        for _ in bounds:
            found = full.get()
            if isinstance(found, BaseException):
                raise found
            start, buffer, x = found
            if pinned:
                x = x.to(device, non_blocking=True)
                copied = torch.cuda.Event()
                copied.record()
                yield Chunk(start, x)
                copied.synchronize()  # the buffer has been read; the chunk itself lives on
            else:
                yield Chunk(start, x)
            free.put(buffer)
    finally:
        free.put(None)
        reader.join()


def _fill(
    source: RowSource,
    bounds: list[tuple[int, int]],
    free: queue.SimpleQueue[Tensor | None],
    full: queue.SimpleQueue[tuple[int, Tensor, Tensor] | BaseException],
) -> None:
    try:
        for start, stop in bounds:
            buffer = free.get()
            if buffer is None:  # the caller has left
                return
            x = buffer[: stop - start]
            source.read(start, stop, x.numpy())
            full.put((start, buffer, x))
    except BaseException as error:  # noqa: BLE001 - raised where the chunks are asked for
        full.put(error)
