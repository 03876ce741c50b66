"""Dtypes and precisions, decided in one place."""

from __future__ import annotations

import torch
from torch import Tensor

BY_DIFFERENCES = 16  # features up to which differences x - c are as fast as a product, on CPUs and GPUs
INTERPRETER = "ieee"  # of Triton kernels whose tensors are on the CPU
PRECISIONS = ("ieee", "tf32x3", "bf16x6", "tf32", "bf16")


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """What an op computes in: float64 where an input is float64, else float32 (half and bfloat16 too)."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def resolve_precision(precision: str | None, backend: str, x: Tensor) -> str:
    """The precision of the products inside a kernel; the default is as accurate as IEEE float32.

    ``ieee`` on CPUs and for float64, ``tf32x3`` on NVIDIA, ``bf16x6`` on AMD. A reduced precision asked of a
    backend that has none is refused rather than ignored.
    """
    if precision is not None and precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {PRECISIONS} or None, got {precision!r}")
    if backend != "triton" or x.dtype == torch.float64:
        if precision not in (None, "ieee"):
            raise ValueError(
                f"precision {precision!r} needs the triton backend and float32 or half inputs; "
                f"{backend} on {x.dtype} computes in 'ieee'"
            )
        return "ieee"
    if precision == "tf32x3" and torch.version.hip:
        raise ValueError("precision 'tf32x3' is not to be had on AMD GPUs; 'bf16x6' is as accurate")
    if precision is not None:
        return precision
    if x.device.type != "cuda":
        return INTERPRETER
    return "bf16x6" if torch.version.hip else "tf32x3"
