"""Nearest neighbours: exact by kernels of our own or searched by FAISS, and all points within a radius."""

from fastdc.kernels.neighbors.choice import AlgorithmChoice, choose_algorithm, explain_algorithms
from fastdc.kernels.neighbors.op import Neighbors, RadiusNeighbors, knn, radius_neighbors

__all__ = [
    "AlgorithmChoice",
    "Neighbors",
    "RadiusNeighbors",
    "choose_algorithm",
    "explain_algorithms",
    "knn",
    "radius_neighbors",
]
