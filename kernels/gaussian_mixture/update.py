"""Parameters from statistics: plain torch on any device."""

from __future__ import annotations

import torch
from torch import Tensor


def gmm_update_torch(
    counts: Tensor, sums: Tensor, scatters: Tensor, means: Tensor, covariances: Tensor, reg_covar: float, kind: str
) -> tuple[Tensor, Tensor, Tensor]:
    """means, covariances and weights; a component without weight keeps its mean and covariance, and gets weight 0."""
    filled = counts > 0
    divisor = torch.where(filled, counts, 1.0)
    weights = counts / counts.sum()
    shift = torch.where(filled[:, None], sums / divisor[:, None], 0.0)
    new_means = means.to(sums.dtype) + shift
    if kind == "tied":
        scatter = (scatters - (counts[:, None] * shift).mT @ shift) / counts.sum()
        new = scatter + reg_covar * torch.eye(means.shape[1], dtype=sums.dtype, device=sums.device)
    else:
        if kind == "full":
            scatter = scatters / divisor[:, None, None] - shift[:, :, None] * shift[:, None, :]
            scatter = scatter + reg_covar * torch.eye(means.shape[1], dtype=sums.dtype, device=sums.device)
        elif kind == "diag":
            scatter = (scatters / divisor[:, None] - shift.square()).clamp(min=0) + reg_covar
        else:
            mean_square = (scatters / divisor - shift.square().sum(dim=1)) / means.shape[1]
            scatter = mean_square.clamp(min=0) + reg_covar
        new = torch.where(filled.reshape(-1, *[1] * (scatter.ndim - 1)), scatter, covariances.to(scatter.dtype))
    return new_means.to(means.dtype), new.to(covariances.dtype), weights.to(means.dtype)
