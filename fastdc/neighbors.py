"""Nearest neighbours, graphs of them, and neighbours for SCAN: FAISS and exact search behind one function."""

from fastdc.kernels.neighbors import (
    AlgorithmChoice,
    MinedNeighbors,
    Neighbors,
    RadiusNeighbors,
    explain_algorithms,
    knn,
    knn_graph,
    mine_neighbors,
    radius_neighbors,
)

__all__ = [
    "AlgorithmChoice",
    "MinedNeighbors",
    "Neighbors",
    "RadiusNeighbors",
    "explain_algorithms",
    "knn",
    "knn_graph",
    "mine_neighbors",
    "radius_neighbors",
]
