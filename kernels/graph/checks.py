"""Checks of the arguments that only this room has."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdc.kernels._checks import FLOATING

NORMALIZATIONS = (None, "symmetric", "row")


def check_edges(edges: Tensor) -> None:
    """int64 of shape (2, n_edges)."""
    if not isinstance(edges, Tensor):
        raise TypeError(
            f"edges must be a torch.Tensor of shape (2, n_edges), a sparse CSR tensor or an EdgeList, "
            f"got {type(edges).__name__}"
        )
    if edges.ndim != 2 or edges.shape[0] != 2:
        raise ValueError(
            f"edges must have shape (2, n_edges), sources first, got {tuple(edges.shape)}; rows of pairs are edges.T"
        )
    if edges.dtype != torch.int64:
        raise TypeError(f"edges must be int64, got {edges.dtype}; convert it with edges.long()")


def check_nodes(ends: Tensor, n_nodes: int, name: str = "edges") -> None:
    """Every end is a node. Waits for a GPU."""
    if ends.numel() == 0:
        return
    lowest, highest = (int(end) for end in torch.aminmax(ends))
    if lowest < 0 or highest >= n_nodes:
        raise ValueError(
            f"{name} must lie between 0 and {n_nodes - 1}, the numbers of the {n_nodes} nodes, "
            f"got {lowest if lowest < 0 else highest}"
        )


def check_csr(matrix: Tensor, name: str) -> None:
    """A 2-D sparse CSR tensor of floating values."""
    if not isinstance(matrix, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(matrix).__name__}")
    if matrix.layout != torch.sparse_csr:
        raise TypeError(
            f"{name} must have layout torch.sparse_csr, got {matrix.layout}; convert it with {name}.to_sparse_csr()"
        )
    if matrix.ndim != 2:
        raise ValueError(f"{name} must be 2-D, got shape {tuple(matrix.shape)}")
    if matrix.dtype not in FLOATING:
        raise TypeError(f"{name} must hold float32, float64, float16 or bfloat16, got {matrix.dtype}")
    indptr, columns = matrix.crow_indices(), matrix.col_indices()
    if int(indptr[0]) != 0 or int(indptr[-1]) != columns.shape[0] or bool((indptr.diff() < 0).any()):
        raise ValueError(f"{name} is no valid CSR tensor: its row pointers must rise from 0 to its number of entries")
    check_nodes(columns, matrix.shape[1], f"columns of {name}")


def check_adjacency(adjacency: Tensor, normalize: str | None, self_loops: bool) -> tuple[int, int]:
    """Its shape."""
    check_csr(adjacency, "adjacency")
    if normalize not in NORMALIZATIONS:
        raise ValueError(f"normalize must be one of {NORMALIZATIONS}, got {normalize!r}")
    if (self_loops or normalize == "symmetric") and adjacency.shape[0] != adjacency.shape[1]:
        raise ValueError(
            f"adjacency has shape {tuple(adjacency.shape)}; self loops and the symmetric normalisation need a "
            "square matrix"
        )
    return adjacency.shape[0], adjacency.shape[1]


def check_floating(v: Tensor, name: str) -> None:
    if v.dtype not in FLOATING:
        raise TypeError(f"{name} must be float32, float64, float16 or bfloat16, got {v.dtype}")


def check_steps(n_steps: int) -> int:
    if isinstance(n_steps, bool) or not isinstance(n_steps, int):
        raise TypeError(f"n_steps must be an int, got {n_steps!r}")
    if n_steps < 1:
        raise ValueError(f"n_steps must be at least 1, got {n_steps}")
    return n_steps
