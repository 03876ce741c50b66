"""Metrics, and rows as a metric wants them.

Neighbours are ordered by a *key*, the smaller the nearer: the squared distance of ``euclidean``, 1 - cos of
``cosine``, the negated product of ``inner_product``. Keys are float64, of differences where the metric has
them, so that equal rows have equal keys on every backend.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastdc.kernels._copies import ROWS_AT_ONCE, map_rows

METRICS = ("euclidean", "cosine", "inner_product")


def check_metric(metric: str, metrics: tuple[str, ...] = METRICS) -> None:
    if metric not in metrics:
        raise ValueError(f"metric must be one of {metrics}, got {metric!r}")


def metric_rows(x: Tensor, metric: str, dtype: torch.dtype) -> Tensor:
    """Rows in the working dtype; of length one under cosine, where a row of zeros stays one."""
    x = x.detach().to(dtype)
    return map_rows(x, _unit_rows) if metric == "cosine" else x


def _unit_rows(x: Tensor) -> Tensor:
    largest = x.abs().amax(dim=1, keepdim=True)
    x = x / torch.where(largest > 0, largest, 1.0)  # squares of very large or small numbers have no room
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=wide_dtype(x)).to(x.dtype)
    return x / torch.where(norm > 0, norm, 1.0)


def wide_dtype(x: Tensor) -> torch.dtype:
    """float64 where the device has it."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def keys_of(a: Tensor, b: Tensor, metric: str) -> Tensor:
    """Keys of the rows of a (..., d) and b (..., d), which broadcast; NaN where one is not finite."""
    wide = wide_dtype(a)
    a, b = a.to(wide), b.to(wide)
    if metric == "inner_product":
        return -(a * b).sum(dim=-1)
    sq_dists = (a - b).square().sum(dim=-1)
    if metric == "euclidean":
        return sq_dists
    has_zero = (a == 0).all(dim=-1) | (b == 0).all(dim=-1)
    return torch.where(has_zero & sq_dists.isfinite(), 1.0, sq_dists / 2)


def distances_of(keys: Tensor, metric: str, dtype: torch.dtype) -> Tensor:
    """What users are given: distances, or under inner_product the products."""
    if metric == "euclidean":
        keys = keys.sqrt()
    elif metric == "inner_product":
        keys = -keys
    return keys.to(dtype)


def is_finite_row(x: Tensor) -> Tensor:
    """(n,) whether every number of a row is finite."""
    return torch.cat([torch.isfinite(rows).all(dim=1) for rows in x.split(ROWS_AT_ONCE)])
