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
from fastdc.neighbors.to_disk import SavedNeighbors, save_knn

__all__ = [
    "AlgorithmChoice",
    "MinedNeighbors",
    "Neighbors",
    "RadiusNeighbors",
    "SavedNeighbors",
    "explain_algorithms",
    "knn",
    "knn_graph",
    "mine_neighbors",
    "radius_neighbors",
    "save_knn",
]
