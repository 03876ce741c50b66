"""Labels and counts at the boundary: whatever holds whole numbers, as an integer tensor."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_integers(values: Any, name: str, ndim: int = 1) -> Tensor:
    """``values`` as an integer tensor of ``ndim`` axes: labels or counts from a tensor, an array or a list.

    No copy where the values are integers in native byte order with positive strides. Floats must hold whole
    numbers. The errors name ``name``, what came and what is wanted.
    """
    tensor = values if isinstance(values, Tensor) else _tensor_of(np.asarray(values), name)
    if tensor.ndim != ndim:
        wanted = "1-D, of shape (n_samples,)" if ndim == 1 else "2-D, of shape (n_classes, n_clusters)"
        raise ValueError(f"{name} must be {wanted}, got shape {tuple(tensor.shape)}; reshape it first")
    if tensor.dtype == torch.bool:
        return tensor.view(torch.uint8)
    if tensor.is_floating_point():
        return _whole_numbers(tensor.detach(), name)
    if tensor.is_complex():
        raise TypeError(f"{name} must hold integers, got {tensor.dtype}; convert it with {name}.real.long()")
    if tensor.dtype in (torch.uint16, torch.uint32):
        return tensor.to(torch.int64)
    if tensor.dtype == torch.uint64:
        tensor = tensor.view(torch.int64)
        if bool((tensor < 0).any()):
            raise ValueError(f"{name} holds ids of 2**63 and above; int64 ids are the largest that are counted")
    return tensor


def _tensor_of(array: np.ndarray, name: str) -> Tensor:
    if array.size == 0 and array.dtype.kind in "fO":  # an empty list
        array = array.astype(np.int64)
    if array.dtype.kind not in "biufc":
        raise TypeError(
            f"{name} must hold integers, got an array of dtype {array.dtype}; "
            f"number its values with np.unique({name}, return_inverse=True)[1]"
        )
    if not array.dtype.isnative or any(stride < 0 for stride in array.strides):
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    with warnings.catch_warnings():  # a read-only array is only read here
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def _whole_numbers(tensor: Tensor, name: str) -> Tensor:
    if tensor.numel() == 0:
        return tensor.long()
    if bool(torch.isnan(tensor).any()):
        raise ValueError(f"{name} contains NaN: {int(torch.isnan(tensor).sum())} such entries; give each sample an id")
    if bool((tensor.abs() >= 2.0**63).any()):
        raise ValueError(f"{name} contains infinity or a value too large for int64")
    integers = tensor.long()
    fractional = integers.to(tensor.dtype) != tensor
    if bool(fractional.any()):
        first = tensor[fractional][0].item()
        raise ValueError(
            f"{name} must hold integers, got the fraction {first:g} of dtype {tensor.dtype}; round it first"
        )
    return integers
