"""The definition in plain torch: any device, float64 too, differentiable. Written to be read, not to be fast.

Byte counts are for n rows, k components, d features and s bytes a number.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastdc.kernels._precision import working_dtype
from fastdc.kernels.gaussian_mixture.parameters import find_precisions, widest

LOWEST = -1e30  # stands for the logarithm of a weight of zero: 0 times it is 0
SCATTERS = {
    "full": "nk,nkd,nke->kde",
    "tied": "nk,nkd,nke->de",
    "diag": "nk,nkd,nkd->kd",
    "spherical": "nk,nkd,nkd->k",
}


def log_joint_reference(x: Tensor, means: Tensor, covariances: Tensor, weights: Tensor, covariance_type: str) -> Tensor:
    """log (w_j N(x_i; mu_j, Sigma_j)) of shape (n_samples, n_components) in the working dtype."""
    dtype = working_dtype(x, means)
    precisions = find_precisions(means, covariances, weights, covariance_type)
    factor = precisions.factor.to(dtype)
    if covariance_type == "tied":
        shift = means.to(dtype).mean(dim=0)  # whitened once, and near the origin
        whitened = (x.to(dtype) - shift) @ factor  # moves 2 n d s
        y = whitened[:, None] - ((means.to(precisions.factor) - shift) @ precisions.factor).to(dtype)  # writes n k d s
    else:
        difference = x.to(dtype)[:, None] - means.to(dtype)  # writes n k d s
        if covariance_type == "full":
            y = torch.einsum("nkd,kde->nke", difference, factor)  # moves 2 n k d s
        else:
            y = difference * (factor if covariance_type == "diag" else factor[:, None])  # moves 2 n k d s
    return precisions.log_norm.to(dtype) - y.square().sum(dim=2) / 2  # reads n k d s, writes n k s


def gmm_rows_reference(
    x: Tensor, means: Tensor, covariances: Tensor, weights: Tensor, covariance_type: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Responsibilities (n, k), log density (n,) and most probable component (n,), -1 for a row that has none."""
    log_joint = log_joint_reference(x, means, covariances, weights, covariance_type)
    log_density = torch.logsumexp(log_joint, dim=1)  # reads n k s
    labels = torch.where(torch.isfinite(log_density), log_joint.argmax(dim=1), -1)  # reads n k s
    return torch.softmax(log_joint, dim=1), log_density, labels  # moves 2 n k s


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
    gamma, log_density, labels = gmm_rows_reference(x, means, covariances, weights, covariance_type)
    valid = labels >= 0
    weight = torch.ones_like(log_density, dtype=wide) if sample_weight is None else sample_weight.to(wide)
    weight = torch.where(valid, weight, 0.0)
    gamma = torch.where(valid[:, None], gamma.to(wide), 0.0) * weight[:, None]  # moves (s + 40) n k
    rows = torch.where(valid[:, None], x.to(wide), 0.0)
    difference = rows[:, None] - means.to(wide)  # writes 8 n k d
    return (
        (torch.where(valid, log_density, 0.0).to(wide) * weight).sum(),
        gamma.sum(dim=0),  # reads 8 n k
        torch.einsum("nk,nkd->kd", gamma, difference),  # reads 8 n k d
        torch.einsum(SCATTERS[covariance_type], gamma, difference, difference),  # moves 24 n k d, or 8 n k d^2
        (~valid).sum(),
    )


def vade_loss_reference(
    z: Tensor,
    mu: Tensor,
    log_var: Tensor,
    means: Tensor,
    log_vars: Tensor,
    log_weights: Tensor,
    detach_responsibilities: bool,
) -> Tensor:
    """Sum over rows of KL(q(z, c | x) || p(z, c)) by the paper's terms; log_weights are normalised already.

    d/2 log 2 pi of the prior and of the posterior cancel, and are left out of both.
    """
    dtype = working_dtype(z, mu, log_var, means, log_vars, log_weights)
    z, mu, log_var, means, log_vars, log_weights = (t.to(dtype) for t in (z, mu, log_var, means, log_vars, log_weights))
    log_weights = log_weights.clamp(min=LOWEST)
    precision = (-log_vars).exp()
    sq_dists = ((z[:, None] - means).square() * precision).sum(dim=2)  # moves 3 n k d s
    log_gamma = torch.log_softmax(log_weights - (log_vars.sum(dim=1) + sq_dists) / 2, dim=1)  # moves 4 n k s
    if detach_responsibilities:
        log_gamma = log_gamma.detach()
    gamma = log_gamma.exp()  # moves 2 n k s
    spread = (mu[:, None] - means).square() + log_var.exp()[:, None]  # writes n k d s
    expected = (log_vars + spread * precision).sum(dim=2) / 2  # -E log N(z; mu_c, sigma_c), moves 2 n k d s
    entropy = (1 + log_var).sum() / 2  # of q(z | x)
    return (gamma * (expected - log_weights + log_gamma)).sum() - entropy  # moves 4 n k s
