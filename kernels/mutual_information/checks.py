"""Checks of the arguments that only this room has."""

from __future__ import annotations

from torch import Tensor

from fastdc.kernels._checks import FLOATING, check_same_device


def check_rows(x: Tensor, name: str) -> None:
    """A floating tensor of shape (n_samples, n_clusters), or with heads first."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}; wrap it with torch.as_tensor")
    if x.ndim not in (2, 3):
        raise ValueError(
            f"{name} must have shape (n_samples, n_clusters) or (n_heads, n_samples, n_clusters), "
            f"got shape {tuple(x.shape)}; a single sample is {name}[None, :]"
        )
    if x.dtype not in FLOATING:
        raise TypeError(
            f"{name} must be float32, float64, float16 or bfloat16, got {x.dtype}; convert it with {name}.float()"
        )
    if x.numel() == 0:
        raise ValueError(f"{name} is empty, shape {tuple(x.shape)}; it needs at least one row and one column")


def check_pair(a: Tensor, b: Tensor, name: str, other: str, same_clusters: bool) -> None:
    """Two views of the same rows: equal shapes, the number of clusters where it must be."""
    check_rows(a, name)
    check_rows(b, other)
    if a.ndim != b.ndim or a.shape[:-1] != b.shape[:-1]:
        raise ValueError(
            f"{other} has shape {tuple(b.shape)} but {name} has {tuple(a.shape)}; they are two views of the same rows"
        )
    if same_clusters and a.shape[-1] != b.shape[-1]:
        raise ValueError(f"{other} has {b.shape[-1]} clusters but {name} has {a.shape[-1]}; both need the same")
    check_same_device(b, a, other, name)
