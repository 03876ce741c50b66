"""Covariances as the kernels want them, checked on the way; plain torch on any device."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

COVARIANCE_TYPES = ("full", "tied", "diag", "spherical")


class Precisions(NamedTuple):
    """In float64 (float32 where the device has none)."""

    factor: Tensor  # 1 / sigma of diag (k, d) and spherical (k,); P (d, d) or (k, d, d) with P P^T = inverse covariance
    log_norm: Tensor  # (k,) log weight - d/2 log 2 pi - 1/2 log det covariance


def covariance_shape(covariance_type: str, k: int, d: int) -> tuple[int, ...]:
    return {"full": (k, d, d), "tied": (d, d), "diag": (k, d), "spherical": (k,)}[covariance_type]


def widest(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def find_precisions(means: Tensor, covariances: Tensor, weights: Tensor, covariance_type: str) -> Precisions:
    """Raises ValueError where a covariance is not positive definite or the weights are no weights."""
    wide = widest(means.device)
    n_features = means.shape[1]
    covariances, weights = covariances.to(wide).contiguous(), weights.to(wide)  # strides must not order sums
    if covariance_type in ("diag", "spherical"):
        factor = covariances.rsqrt()
        is_bad = ~(covariances > 0) | ~torch.isfinite(covariances)
        log_det = factor.log().sum(dim=1) if covariance_type == "diag" else factor.log() * n_features
    else:
        inverse, info = _inverse_of_root(covariances)
        factor = inverse.mT
        is_bad = (info != 0) | ~torch.isfinite(covariances).all(dim=-1).all(dim=-1)
        log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
    _check(is_bad, weights)
    return Precisions(factor, weights.log() + log_det - n_features / 2 * math.log(2 * math.pi))


def find_covariances(precisions: Tensor, covariance_type: str) -> Tensor:
    """What the precisions are the inverses of; raises ValueError where they are none."""
    wide = precisions.to(widest(precisions.device))
    if covariance_type in ("diag", "spherical"):
        is_good, covariances = wide > 0, wide.reciprocal()
    else:
        factor, info = _inverse_of_root(wide)
        covariances = factor.mT @ factor
        is_good = (info == 0) & ((wide - wide.mT).abs().max() <= 1e-5 * wide.abs().max())
    if not bool(is_good.all() & wide.isfinite().all()):
        raise ValueError("precisions must be finite, symmetric and positive definite")
    return covariances.to(precisions.dtype)


def _inverse_of_root(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of the lower triangular L whose L L^T is the matrix, and 0 where the matrix has such."""
    identity = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    with _one_thread():
        lower, info = torch.linalg.cholesky_ex(matrices)
        return torch.linalg.solve_triangular(lower, identity, upper=False), info


@contextmanager
def _one_thread() -> Iterator[None]:
    """Beyond 128 features the bits of LAPACK depend on the number of its threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check(is_bad: Tensor, weights: Tensor) -> None:
    bad_weights = ~(weights >= 0).all() | ~(weights.sum() > 0) | ~torch.isfinite(weights).all()
    if not bool(is_bad.any() | bad_weights):
        return
    if bool(bad_weights):
        raise ValueError("weights must be finite, 0 or above, and not all 0; pass them as their softmax, for instance")
    where = f" of component {int(is_bad.nonzero()[0, 0])}" if is_bad.ndim else ""
    raise ValueError(
        f"the covariance{where} is not positive definite; raise reg_covar in gmm_update, or use fewer components"
    )
