"""Checks of the arguments that only this room has."""

from __future__ import annotations

from torch import Tensor

from fastdc.kernels._checks import FLOATING, check_centers, check_points, check_same_device, check_vector
from fastdc.kernels.gaussian_mixture.parameters import COVARIANCE_TYPES, covariance_shape


def check_mixture(x: Tensor, means: Tensor, covariances: Tensor, weights: Tensor, covariance_type: str) -> None:
    check_points(x)
    check_centers(means, x, "means")
    check_covariances(covariances, means, covariance_type)
    check_vector(weights, means.shape[0], "weights", x, "components")


def check_covariances(covariances: Tensor, means: Tensor, covariance_type: str) -> None:
    if covariance_type not in COVARIANCE_TYPES:
        raise ValueError(f"covariance_type must be one of {COVARIANCE_TYPES}, got {covariance_type!r}")
    if not isinstance(covariances, Tensor):
        raise TypeError(
            f"covariances must be a torch.Tensor, got {type(covariances).__name__}; wrap it with torch.as_tensor"
        )
    wanted = covariance_shape(covariance_type, *means.shape)
    if covariances.shape != wanted:
        raise ValueError(
            f"covariances must have shape {wanted} for covariance_type {covariance_type!r}, "
            f"got {tuple(covariances.shape)}"
        )
    if covariances.dtype not in FLOATING:
        raise TypeError(f"covariances must be floating, got {covariances.dtype}; convert it with covariances.float()")
    check_same_device(covariances, means, "covariances", "means")


def check_latent(z: Tensor, mu: Tensor, log_var: Tensor, means: Tensor, log_vars: Tensor, logits: Tensor) -> None:
    """The arguments of vade_loss: shapes that fit."""
    check_points(z, "z")
    for name, value in (("mu", mu), ("log_var", log_var)):
        check_centers(value, z, name, "z")
        if value.shape != z.shape:
            raise ValueError(f"{name} has {value.shape[0]} rows but z has {z.shape[0]}; they are the same samples")
    check_centers(means, z, "means", "z")
    check_centers(log_vars, z, "log_vars", "z")
    if log_vars.shape != means.shape:
        raise ValueError(f"log_vars must have the shape of means, {tuple(means.shape)}, got {tuple(log_vars.shape)}")
    check_vector(logits, means.shape[0], "logits", z, "components")
    if logits.dtype not in FLOATING:
        raise TypeError(f"logits must be floating, got {logits.dtype}; convert it with logits.float()")
