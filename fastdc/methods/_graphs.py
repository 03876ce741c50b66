"""Graphs that methods propagate over: a user's, or that of nearest neighbours."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdc.kernels.neighbors import knn_graph
from fastdc.networks import GraphCentroids
from fastdc.training import Stage, Trainer


@dataclass
class Link(Stage):
    """Give the head its graph: the user's, or that of nearest neighbours."""

    head: GraphCentroids
    graph: Any
    n_neighbors: int
    metric: str

    def run(self, trainer: Trainer) -> None:
        x = trainer.data
        graph = self.graph
        if graph is None and len(x) > 1:
            graph = knn_graph(x, min(self.n_neighbors, len(x) - 1), self.metric, mode="symmetric")
        self.head.link(read_graph(np.empty((2, 0), np.int64) if graph is None else graph, len(x)).to(x))


def read_graph(graph: Any, n_samples: int) -> Tensor:
    """A user's graph as a sparse CSR tensor: from a ``scipy.sparse`` matrix, or from edges (2, n_edges) of weight 1."""
    from scipy.sparse import coo_array, csr_array, issparse

    wanted = "a scipy.sparse matrix of shape (n_samples, n_samples) or integers of shape (2, n_edges)"
    if not issparse(graph):
        edges = np.asarray(graph.cpu() if isinstance(graph, Tensor) else graph)
        if edges.ndim != 2 or len(edges) != 2 or edges.dtype.kind not in "iu":
            raise ValueError(f"graph must be {wanted}, got {edges.dtype} of shape {edges.shape}")
        if edges.size and not (0 <= edges.min() and edges.max() < n_samples):
            raise ValueError(
                f"the edges of graph must join rows from 0 to {n_samples - 1}, got {edges.min()} to {edges.max()}"
            )
        graph = coo_array((np.ones(edges.shape[1]), tuple(edges)), shape=(n_samples, n_samples))
        graph = csr_array(graph)
        graph.data[:] = 1.0  # an edge that is listed twice is one
    if graph.shape != (n_samples, n_samples):
        raise ValueError(f"graph must be {wanted}: X has {n_samples} rows, and graph shape {graph.shape}")
    graph = csr_array(graph, dtype=np.float64)
    if graph.nnz and not (np.isfinite(graph.data).all() and graph.data.min() >= 0):
        raise ValueError("the weights of graph must be finite and not negative")
    graph.setdiag(0)
    graph.eliminate_zeros()
    indptr, columns = (torch.from_numpy(part.astype(np.int64)) for part in (graph.indptr, graph.indices))
    values = torch.from_numpy(graph.data)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(indptr, columns, values, size=graph.shape, check_invariants=False)


def csr_parts(graph: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a sparse CSR tensor is made of."""
    return graph.crow_indices(), graph.col_indices(), graph.values()
