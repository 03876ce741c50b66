"""Rows of a torch tensor as numpy blocks for the CPU kernels: no copy where none is needed."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_NUMPY = {torch.float32: np.float32, torch.float64: np.float64}


def numpy_dtype(dtype: torch.dtype) -> np.dtype:
    return np.dtype(_NUMPY[dtype])


def as_array(x: Tensor, dtype: np.dtype) -> NDArray:
    """All of x as a C-contiguous array of the dtype; for small tensors such as centers."""
    return np.ascontiguousarray(Rows(x, dtype)[0 : x.shape[0]])


def empty(shape: tuple[int, ...], dtype: np.dtype) -> Tensor:
    """An uninitialised tensor on numpy's memory, which asks for huge pages: its first touch costs far less."""
    return torch.from_numpy(np.empty(shape, dtype))


class Rows:
    """``rows[i:j]`` is a C-contiguous array of the working dtype; only that block is converted or copied."""

    def __init__(self, x: Tensor, dtype: np.dtype) -> None:
        x = x.detach()
        self.is_bfloat16 = x.dtype == torch.bfloat16
        # numpy knows no bfloat16: its bits are the upper half of a float32's
        self.array = (x.view(torch.int16) if self.is_bfloat16 else x).numpy()
        self.dtype = dtype

    def __getitem__(self, rows: slice) -> NDArray:
        block = self.array[rows]
        if self.is_bfloat16:
            block = (block.astype(np.uint16, order="C").astype(np.uint32) << 16).view(np.float32)
        return np.ascontiguousarray(block, dtype=self.dtype)
