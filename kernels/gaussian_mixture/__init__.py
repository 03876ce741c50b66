"""Gaussian mixtures: responsibilities, densities, one pass of EM, the M-step, and the prior of VaDE."""

from fastdc.kernels.gaussian_mixture.op import (
    GMMLogDensity,
    GMMParameters,
    GMMResponsibilities,
    GMMStep,
    gmm_log_density,
    gmm_responsibilities,
    gmm_step,
    gmm_update,
)
from fastdc.kernels.gaussian_mixture.vade import vade_loss

__all__ = [
    "GMMLogDensity",
    "GMMParameters",
    "GMMResponsibilities",
    "GMMStep",
    "gmm_log_density",
    "gmm_responsibilities",
    "gmm_step",
    "gmm_update",
    "vade_loss",
]
