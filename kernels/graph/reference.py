"""The definition in plain torch: any device, float64 too, differentiable. Written to be read, not to be fast.

Byte counts are for m edges or entries, n rows, d features, k clusters and s bytes a number.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastdc.kernels._precision import working_dtype
from fastdc.kernels.graph.edges import Adjacency

FARTHEST = 1000.0  # a logit farther below the row's largest, or minus infinity, counts as that far below


def laplacian_reference(z: Tensor, edges: Tensor, weights: Tensor | None) -> Tensor:
    """Sum over edges of w |z_i - z_j|^2."""
    dtype = working_dtype(z) if weights is None else working_dtype(z, weights)
    sq_dists = edge_sq_dists_reference(z.to(dtype), edges)
    return sq_dists.sum() if weights is None else (weights.to(dtype) * sq_dists).sum()  # moves 2 m s


def edge_sq_dists_reference(x: Tensor, edges: Tensor) -> Tensor:
    """Squared length of each edge (m,)."""
    x = x.to(working_dtype(x))
    difference = x[edges[0]] - x[edges[1]]  # moves 7 m d s
    return difference.square().sum(dim=1)  # moves 3 m d s


def propagate_reference(x: Tensor, adjacency: Adjacency, n_steps: int) -> Tensor:
    """The adjacency applied n_steps times to x."""
    dtype = working_dtype(x, adjacency.values)
    y = x.to(dtype)
    n_rows = adjacency.indptr.shape[0] - 1
    rows = torch.repeat_interleave(adjacency.indptr.diff())
    for _ in range(n_steps):
        terms = adjacency.values.to(dtype)[:, None] * y[adjacency.columns]  # moves 4 m d s
        y = y.new_zeros((n_rows, x.shape[1])).index_add(0, rows, terms)  # moves 3 m d s
    return y.to(x.dtype)


def consistency_reference(anchor: Tensor, neighbor: Tensor, from_logits: bool) -> Tensor:
    """Sum over rows of -log <p_i, p_j>."""
    a, b = (_log_probabilities(x.to(working_dtype(anchor, neighbor)), from_logits) for x in (anchor, neighbor))
    return -torch.logsumexp(a + b, dim=1).sum()  # moves 6 n k s


def _log_probabilities(x: Tensor, from_logits: bool) -> Tensor:
    info = torch.finfo(x.dtype)
    if not from_logits:
        return (x + info.tiny).log()  # moves 4 n k s
    largest = x.detach().amax(dim=1, keepdim=True)
    return torch.log_softmax(torch.maximum(x, largest - FARTHEST), dim=1)  # moves 4 n k s
