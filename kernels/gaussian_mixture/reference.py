"""The definition in plain torch: any device, float64 too, differentiable. Written to be read, not to be fast.

Byte counts are for n rows, k components, d features and s bytes a number.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastdc.kernels._precision import working_dtype
from fastdc.kernels.gaussian_mixture.parameters import find_precisions, widest

LOWEST = -1e30  # stands for the logarithm of a weight of zero: 0 times it is 0


def log_joint_reference(
    x: Tensor, means: Tensor, covariances: Tensor, weights: Tensor, covariance_type: str
) -> Tensor:
    """log (w_j N(x_i; mu_j, Sigma_j)) of shape (n_samples, n_components) in the working dtype."""
    dtype = working_dtype(x, means)
    precisions = find_precisions(means, covariances, weights, covariance_type)
    factor = precisions.factor.to(dtype)
    if covariance_type == "tied":
        shift = means.to(precisions.factor).mean(dim=0)  # whitened once, and near the origin
        whitened = (x.to(dtype) - shift.to(dtype)) @ factor  # moves 2 n d s
        y = whitened[:, None] - ((means.to(shift) - shift) @ precisions.factor).to(dtype)  # writes n k d s
    else:
        difference = x.to(dtype)[:, None] - means.to(dtype)  # writes n k d s
        if covariance_type == "full":
            y = torch.einsum("nkd,kde->nke", difference, factor)  # moves 2 n k d s
        else:
            y = difference * (factor if covariance_type == "diag" else factor[:, None])  # moves 2 n k d s
    return precisions.log_norm.to(dtype) - y.square().sum(dim=2) / 2  # reads n k d s, writes n k s


def gmm_responsibilities_reference(
    x: Tensor, means: Tensor, covariances: Tensor, weights: Tensor, covariance_type: str
) -> Tensor:
    """gamma (n_samples, n_components), rows summing to one."""
    return torch.softmax(log_joint_reference(x, means, covariances, weights, covariance_type), dim=1)  # moves 2 n k s


def gmm_step_reference(
    x: Tensor,
    means: Tensor,
    covariances: Tensor,
    weights: Tensor,
    sample_weight: Tensor | None,
    covariance_type: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """log_likelihood, counts, sums, scatters and n_invalid; sums in float64."""
    wide = widest(x.device)
    log_joint = log_joint_reference(x, means, covariances, weights, covariance_type)
    log_likelihood = torch.logsumexp(log_joint, dim=1)  # reads n k s
    valid = torch.isfinite(log_likelihood)
    weight = torch.ones_like(log_likelihood, dtype=wide) if sample_weight is None else sample_weight.to(wide)
    weight = torch.where(valid, weight, 0.0)
    gamma = (log_joint - log_likelihood[:, None]).exp().to(wide)  # moves (s + 16) n k
    gamma = torch.where(valid[:, None], gamma, 0.0) * weight[:, None]  # moves 32 n k
    rows = torch.where(valid[:, None], x.to(wide), 0.0)
    difference = rows[:, None] - means.to(wide)  # writes 8 n k d
    scatters = {
        "full": "nk,nkd,nke->kde",
        "tied": "nk,nkd,nke->de",
        "diag": "nk,nkd,nkd->kd",
        "spherical": "nk,nkd,nkd->k",
    }[covariance_type]
    return (
        (torch.where(valid, log_likelihood, 0.0).to(wide) * weight).sum(),
        gamma.sum(dim=0),  # reads 8 n k
        torch.einsum("nk,nkd->kd", gamma, difference),  # reads 8 n k d
        torch.einsum(scatters, gamma, difference, difference),  # moves 24 n k d, or 8 n k d^2
        (~valid).sum(),
    )


def vade_loss_reference(
    z: Tensor,
    z_mean: Tensor,
    z_log_var: Tensor,
    means: Tensor,
    log_vars: Tensor,
    log_weights: Tensor,
    detach_responsibilities: bool,
) -> Tensor:
    """Sum over rows of KL(q(z, c | x) || p(z, c)), gamma from the sampled z; log_weights are normalised already."""
    dtype = working_dtype(z, z_mean, z_log_var, means, log_vars, log_weights)
    z, z_mean, z_log_var, means, log_vars, log_weights = (
        t.to(dtype) for t in (z, z_mean, z_log_var, means, log_vars, log_weights)
    )
    log_weights = log_weights.clamp(min=LOWEST)
    precision = (-log_vars).exp()
    sq_dists = ((z[:, None] - means).square() * precision).sum(dim=2)  # moves 3 n k d s
    log_norm = -(math.log(2 * math.pi) + log_vars).sum(dim=1) / 2
    log_gamma = torch.log_softmax(log_weights + log_norm - sq_dists / 2, dim=1)  # moves 4 n k s
    if detach_responsibilities:
        log_gamma = log_gamma.detach()
    gamma = log_gamma.exp()  # moves 2 n k s
    spread = (z_mean[:, None] - means).square() + z_log_var.exp()[:, None]  # writes n k d s
    expected = (log_vars + spread * precision).sum(dim=2) / 2  # -E log N(z; mu_c, sigma_c) less d/2 log 2 pi
    entropy = (1 + z_log_var).sum() / 2  # of q(z | x), less d/2 log 2 pi
    return (gamma * (expected - log_weights + log_gamma)).sum() - entropy  # moves 4 n k s
