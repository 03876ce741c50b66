"""Chunks of a row source as tensors, the next one being read while one is at work."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastdc._input import as_tensor
from fastdc.data.sources import RowSource

BUFFERS = 3  # one at work, one ready, one being filled

_Bounds = list[tuple[int, int]]
_Filled = tuple[int, Tensor, Tensor]  # first row, rows, the buffer that holds them


class Chunk(NamedTuple):
    """Rows ``start`` to ``start + len(x)`` of a source; ``x`` is valid until the next chunk is asked for."""

    start: int
    x: Tensor


def iter_chunks(source: RowSource, rows: int, *, device: torch.device | str = "cpu") -> Iterator[Chunk]:
    """The rows of a source in order, ``rows`` at a time.

    Parameters
    ----------
    source : RowSource
    rows : int
        Of a chunk; the last may have fewer.
    device : torch.device or str
        Where the chunks shall lie.

    Yields
    ------
    Chunk
        ``x`` (at most ``rows``, n_features) in the source's dtype, not to be written to.

    Notes
    -----
    Rows that lie in the device's memory or in a memory map are seen where they are. Others are read by a thread
    into three buffers of ``rows`` rows, two of which are ahead of the caller. On a GPU the buffers are pinned, and
    a chunk is copied while the one before is at work. An error of the reading thread is raised here, with its
    traceback. Close the iterator (``contextlib.closing``) where it may not be used up: the thread ends with it.

    Examples
    --------
    >>> from fastdc.data import as_row_source
    >>> source = as_row_source(np.arange(10, dtype=np.int8).reshape(5, 2))
    >>> [(start, x.sum().item()) for start, x in iter_chunks(source, 2)]
    [(0, 6.0), (2, 22.0), (4, 17.0)]
    """
    if rows < 1:
        raise ValueError(f"rows must be at least 1, got {rows}")
    if len(source) == 0:
        return iter(())
    device = torch.device(device)
    bounds = [(i, min(i + rows, len(source))) for i in range(0, len(source), rows)]
    if all(_lies_on(source.view(*ends), device) for ends in (bounds[0], bounds[-1])):
        return _seen(source, bounds)
    if device.type == "cuda":
        return _copied(source, bounds, device)
    return _read_ahead(source, bounds, pinned=False)


def _lies_on(rows: np.ndarray | Tensor | None, device: torch.device) -> bool:
    if isinstance(rows, Tensor):
        return rows.device.type == device.type and device.index in (None, rows.device.index)
    return rows is not None and device.type == "cpu"


def _seen(source: RowSource, bounds: _Bounds) -> Iterator[Chunk]:
    """Chunks where they lie; one that cannot be seen, such as over a shard's edge, is read."""
    source.will_need(*bounds[0])
    for i, (start, stop) in enumerate(bounds):
        if i + 1 < len(bounds):
            source.will_need(*bounds[i + 1])
        rows = source.view(start, stop)
        if rows is None:
            rows = source.rows(start, stop)
        yield Chunk(start, rows if isinstance(rows, Tensor) else as_tensor(rows))


def _copied(source: RowSource, bounds: _Bounds, device: torch.device) -> Iterator[Chunk]:
    """Chunks on a GPU: copied by a stream of its own, at most two of them waiting for the kernels."""
    copies = torch.cuda.Stream(device)
    at_work: deque[torch.cuda.Event] = deque()
    with closing(_read_ahead(source, bounds, pinned=True)) as chunks:
        for start, x in chunks:
            if len(at_work) == 2:
                at_work.popleft().synchronize()
            with torch.cuda.stream(copies):
                chunk = x.to(device, non_blocking=True)
            kernels = torch.cuda.current_stream(device)
            kernels.wait_stream(copies)
            chunk.record_stream(kernels)
            yield Chunk(start, chunk)
            at_work.append(kernels.record_event())
            copies.synchronize()  # the buffer is filled again


def _read_ahead(source: RowSource, bounds: _Bounds, *, pinned: bool) -> Generator[Chunk, None, None]:
    """What a thread reads. A buffer is filled again when the next chunk is asked for."""
    shape = bounds[0][1], source.shape[1]
    dtype = torch.float64 if source.dtype == np.float64 else torch.float32
    free: queue.SimpleQueue[Tensor | None] = queue.SimpleQueue()
    full: queue.SimpleQueue[_Filled | BaseException] = queue.SimpleQueue()
    for _ in range(min(BUFFERS, len(bounds))):
        free.put(torch.empty(shape, dtype=dtype, pin_memory=pinned))
    left = threading.Event()
    work = source, bounds, free, full, left
    reader = threading.Thread(target=_fill, args=work, name="fastdc-reader", daemon=True)
    found: _Filled | BaseException | None = None
    try:
        reader.start()
        for _ in bounds:
            found = full.get()
            if isinstance(found, BaseException):
                raise found
            start, x, buffer = found
            yield Chunk(start, x)
            free.put(buffer)
    finally:
        del found  # an error and this frame would keep each other, and the buffers, alive
        left.set()
        free.put(None)
        with suppress(RuntimeError):  # an interrupt came while it was being started; it ends by itself
            reader.join()


def _fill(
    source: RowSource,
    bounds: _Bounds,
    free: queue.SimpleQueue[Tensor | None],
    full: queue.SimpleQueue[_Filled | BaseException],
    left: threading.Event,
) -> None:
    try:
        for start, stop in bounds:
            buffer = free.get()
            if buffer is None or left.is_set():
                return
            x = buffer[: stop - start]
            source.read(start, stop, x.numpy())
            full.put((start, x, buffer))
    except BaseException as error:  # noqa: BLE001 - raised where the chunks are asked for
        full.put(error)
