"""From moments to statistics, and from statistics to parameters: plain torch on any device."""

from __future__ import annotations

import torch
from torch import Tensor


def about_means(
    counts: Tensor, moments: Tensor, seconds: Tensor, shift: Tensor, covariance_type: str
) -> tuple[Tensor, Tensor]:
    """sums and scatters about the means, from the first and second moments about an origin, all in float64.

    shift (k, d): the means less the origin. ``seconds`` have the shape of covariances.
    """
    sums = moments - counts[:, None] * shift
    if covariance_type == "diag":
        return sums, seconds - shift * (moments + sums)
    if covariance_type == "spherical":
        return sums, seconds - (shift * (moments + sums)).sum(dim=1)
    if covariance_type == "tied":
        scatter = seconds - shift.mT @ moments - sums.mT @ shift
    else:
        scatter = seconds - shift[:, :, None] * moments[:, None, :] - sums[:, :, None] * shift[:, None, :]
    return sums, (scatter + scatter.mT) / 2


def gmm_update_torch(
    counts: Tensor, sums: Tensor, scatters: Tensor, means: Tensor, covariances: Tensor, reg_covar: float, kind: str
) -> tuple[Tensor, Tensor, Tensor]:
    """means, covariances and weights; a component without weight keeps its mean and covariance, and gets weight 0."""
    filled, total = counts > 0, counts.sum()
    some = total > 0
    divisor, total = torch.where(filled, counts, 1.0), torch.where(some, total, 1.0)
    shift = sums / divisor[:, None]
    if kind == "tied":
        new = (scatters - (counts[:, None] * shift).mT @ shift) / total
        keep = ~some
    elif kind == "full":
        new = scatters / divisor[:, None, None] - shift[:, :, None] * shift[:, None, :]
        keep = ~filled[:, None, None]
    elif kind == "diag":
        new = (scatters / divisor[:, None] - shift.square()).clamp(min=0)
        keep = ~filled[:, None]
    else:
        new = ((scatters / divisor - shift.square().sum(dim=1)) / means.shape[1]).clamp(min=0)
        keep = ~filled
    if kind in ("tied", "full"):
        new = new + reg_covar * torch.eye(means.shape[1], dtype=sums.dtype, device=sums.device)
    else:
        new = new + reg_covar
    new = torch.where(keep, covariances.to(new.dtype), new)
    new_means = torch.where(filled[:, None], means.to(sums.dtype) + shift, means.to(sums.dtype))
    return new_means.to(means.dtype), new.to(covariances.dtype), (counts / total).to(means.dtype)
