"""Weights of neighbourhood graphs, each made from rows of rising distances (n, n_neighbors) in float64.

A distance that is not finite belongs to no edge; its weight is of no meaning, and it counts in no mean.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SEARCH_ROUNDS, SEARCH_TOLERANCE = 64, 1e-5  # of umap-learn's binary search
LEAST_SCALE = 1e-3  # of umap-learn: a sigma is at least this share of the mean distance
CHUNK_NUMBERS = 1 << 20  # distances whose sigmas are searched at a time


def heat_weights(distances: Tensor, sigma: float | None) -> Tensor:
    """exp(-d^2 / (2 sigma^2)); sigma None is the mean distance. One for points at distance 0."""
    if sigma is None:
        sigma = float(distances[distances.isfinite()].mean()) if bool(distances.isfinite().any()) else 1.0
    return torch.where(distances == 0, 1.0, torch.exp(-0.5 * (distances / sigma).square()))


def self_tuning_weights(distances: Tensor, indices: Tensor, local_neighbor: int) -> Tensor:
    """exp(-d_ij^2 / (sigma_i sigma_j)), sigma the distance to the ``local_neighbor``-th neighbour or the last."""
    near = distances[:, :local_neighbor]
    scales = torch.where(near.isfinite(), near, 0.0).amax(dim=1)
    ratios = (distances / scales[:, None]) * (distances / scales[indices.clamp(min=0)])
    return torch.where(distances == 0, 1.0, torch.exp(-ratios))


def umap_weights(distances: Tensor) -> Tensor:
    """Memberships exp(-max(0, d_ij - rho_i) / sigma_i) of umap-learn, before any union."""
    rows_a_chunk = max(1, CHUNK_NUMBERS // distances.shape[1])
    finite = distances.isfinite()
    n_counted = int(finite.sum()) + int(finite.any(dim=1).sum())  # each row itself too, at distance 0
    mean = float(torch.where(finite, distances, 0.0).sum()) / max(1, n_counted)
    return torch.cat([_memberships(rows, mean) for rows in distances.split(rows_a_chunk)])


def _memberships(distances: Tensor, mean: float) -> Tensor:
    finite = distances.isfinite()
    rho = torch.where(finite & (distances > 0), distances, torch.inf).amin(dim=1)
    rho = torch.where(rho.isfinite(), rho, 0.0)
    beyond = torch.where(finite, (distances - rho[:, None]).clamp(min=0.0), torch.inf)
    sigma = _search_sigma(beyond)
    row_means = torch.where(finite, distances, 0.0).sum(dim=1) / (1 + finite.sum(dim=1))
    sigma = torch.maximum(sigma, LEAST_SCALE * torch.where(rho > 0, row_means, mean))
    return torch.where(beyond == 0, 1.0, torch.exp(-beyond / sigma[:, None]))


def _search_sigma(beyond: Tensor) -> Tensor:
    """Sigma of each row with sum_j exp(-beyond_ij / sigma) = log2(n_neighbors + 1), by bisection from one."""
    target = math.log2(beyond.shape[1] + 1)
    low = beyond.new_zeros(len(beyond))
    high, sigma = torch.full_like(low, torch.inf), torch.ones_like(low)
    for _ in range(SEARCH_ROUNDS):
        excess = torch.exp(-beyond / sigma[:, None]).sum(dim=1) - target
        searched = excess.abs() >= SEARCH_TOLERANCE
        if not bool(searched.any()):
            break
        low = torch.where(searched & (excess < 0), sigma, low)
        high = torch.where(searched & (excess > 0), sigma, high)
        middle = torch.where(high.isfinite(), 0.5 * (low + high), 2.0 * sigma)
        sigma = torch.where(searched, middle, sigma)
    return sigma
