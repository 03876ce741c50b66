"""Candidates measured by differences in float64 and put in order."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdc.kernels.neighbors.points import distances_of, is_finite_row, keys_of

CHUNK_BYTES = 1 << 26  # of the differences of one chunk of rows


def best_keys(
    candidates: Tensor, rows: Tensor, points: Tensor, is_self: bool, n_neighbors: int, metric: str
) -> tuple[Tensor, Tensor]:
    """Keys (m, n_neighbors) and indices of the nearest candidates (m, c >= n_neighbors less the row itself).

    Candidates differ or are -1; free places have an infinite key and the index -1.
    """
    (m, c), d = candidates.shape, points.shape[1]
    chunk = max(1, CHUNK_BYTES // (8 * c * d))
    all_keys, all_indices = [], []
    for start in range(0, m, chunk):
        part = candidates[start : start + chunk].sort(dim=1).values  # equal keys then stay in order of index
        keys = keys_of(rows[start : start + chunk, None, :], points[part.clamp(min=0)], metric)
        none = (part < 0) | ~keys.isfinite()
        if is_self:
            none |= part == torch.arange(start, start + len(part), device=part.device)[:, None]
        keys, order = torch.where(none, torch.inf, keys).sort(dim=1, stable=True)
        indices = torch.where(keys.isfinite(), part.gather(1, order), -1)
        all_keys.append(keys[:, :n_neighbors])
        all_indices.append(indices[:, :n_neighbors])
    return torch.cat(all_keys), torch.cat(all_indices)


def best_of(
    candidates: Tensor, rows: Tensor, points: Tensor, is_self: bool, n_neighbors: int, metric: str
) -> tuple[Tensor, Tensor]:
    """Distances in the dtype of the rows, and indices, of the nearest candidates."""
    keys, indices = best_keys(candidates, rows, points, is_self, n_neighbors, metric)
    keys = torch.where(is_finite_row(rows)[:, None], keys, torch.nan)
    return distances_of(keys, metric, rows.dtype), indices
