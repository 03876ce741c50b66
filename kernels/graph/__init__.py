"""Losses and propagation over the edges of a graph: every node pulls from its neighbours."""

from fastdc.kernels.graph.consistency import neighbor_consistency_loss
from fastdc.kernels.graph.edges import Adjacency, EdgeList
from fastdc.kernels.graph.op import heat_weights, laplacian_loss, locality_preserving_loss, propagate

__all__ = [
    "Adjacency",
    "EdgeList",
    "heat_weights",
    "laplacian_loss",
    "locality_preserving_loss",
    "neighbor_consistency_loss",
    "propagate",
]
