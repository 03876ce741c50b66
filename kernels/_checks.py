"""Checks at the public boundary. Each error names the argument, what came, what is wanted and how to fix it."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def check_points(x: Tensor, name: str = "x", feature_axis: str = "n_features") -> None:
    """A 2-D floating tensor with at least one row and one column."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}; wrap it with torch.as_tensor")
    if x.ndim != 2:
        raise ValueError(
            f"{name} must be 2-D, of shape (n_samples, {feature_axis}), got shape {tuple(x.shape)}; "
            "a single sample is x[None, :], a single feature x[:, None]"
        )
    if x.dtype not in FLOATING:
        raise TypeError(
            f"{name} must be float32, float64, float16 or bfloat16, got {x.dtype}; convert it with {name}.float()"
        )
    if x.shape[0] == 0 or x.shape[1] == 0:
        raise ValueError(f"{name} is empty, shape {tuple(x.shape)}; it needs at least one row and one column")


def check_centers(centers: Tensor, x: Tensor, name: str = "centers", x_name: str = "x") -> None:
    """Centers that fit the points: 2-D, floating, same number of features, same device."""
    check_points(centers, name)
    if centers.shape[1] != x.shape[1]:
        raise ValueError(
            f"{name} has {centers.shape[1]} features but {x_name} has {x.shape[1]}; both must be (…, n_features)"
        )
    check_same_device(centers, x, name, x_name)


def check_same_device(other: Tensor, x: Tensor, name: str, x_name: str = "x") -> None:
    if other.device != x.device:
        raise ValueError(f"{name} is on {other.device} but {x_name} is on {x.device}; move one with .to(...)")


def check_vector(v: Tensor, length: int, name: str, x: Tensor, what: str) -> None:
    """A 1-D tensor with one entry for each of ``what``, on the device of ``x``."""
    if not isinstance(v, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(v).__name__}; wrap it with torch.as_tensor")
    if v.shape != (length,):
        raise ValueError(f"{name} must have shape ({length},), one entry for each of the {what}, got {tuple(v.shape)}")
    check_same_device(v, x, name)


def check_labels(labels: Tensor, length: int, name: str, x: Tensor) -> None:
    """int64 labels, one a row."""
    check_vector(labels, length, name, x, "rows")
    if labels.dtype != torch.int64:
        raise TypeError(f"{name} must be int64, got {labels.dtype}; convert it with {name}.long()")


def check_positive(value: float, name: str) -> float:
    """A finite number above zero."""
    number = float(value)
    if not (0.0 < number < float("inf")):
        raise ValueError(f"{name} must be a finite number above 0, got {value}")
    return number


def check_not_negative(value: float, name: str) -> float:
    """A finite number, zero or above."""
    number = float(value)
    if not (0.0 <= number < float("inf")):
        raise ValueError(f"{name} must be a finite number, 0 or above, got {value}")
    return number


def check_finite(*named: tuple[str, Tensor | None]) -> None:
    """Raise where a tensor holds NaN or infinity, naming the first such row and column."""
    for name, x in named:
        if x is None:
            continue
        bad = ~torch.isfinite(x)
        count = int(bad.sum())
        if count:
            where = ", ".join(str(int(i)) for i in bad.nonzero()[0])
            kind = "NaN" if bool(torch.isnan(x).any()) else "infinity or a value too large"
            raise ValueError(f"Input {name} contains {kind}: {count} such entries, the first at index [{where}].")
