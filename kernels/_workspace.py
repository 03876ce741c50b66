"""Scratch arrays that a thread keeps between calls.

The first touch of fresh memory costs as much as dozens of operations on it, and a loss is called thousands of times.
"""

from __future__ import annotations

import math
import threading

import numpy as np
from numpy.typing import NDArray

MOST_BYTES = 1 << 25  # that an array may have to be kept; a thread keeps one of each name


class _Kept(threading.local):
    def __init__(self) -> None:
        self.buffers: dict[str, NDArray] = {}


_kept = _Kept()


def workspace(name: str, shape: tuple[int, ...], dtype: np.dtype) -> NDArray:
    """An array of any content, the caller's until it asks for the name again on the same thread; never a result."""
    n_bytes = math.prod(shape) * dtype.itemsize
    if n_bytes > MOST_BYTES:
        return np.empty(shape, dtype)
    buffer = _kept.buffers.get(name)
    if buffer is None or buffer.nbytes < n_bytes:
        buffer = _kept.buffers[name] = np.empty(n_bytes, np.uint8)
    return buffer[:n_bytes].view(dtype).reshape(shape)
