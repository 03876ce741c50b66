"""Nearest neighbours: exact by kernels of our own or searched by FAISS, all points within a radius, and graphs."""

from fastdc.kernels.neighbors.choice import AlgorithmChoice, choose_algorithm, explain_algorithms
from fastdc.kernels.neighbors.graph import knn_graph
from fastdc.kernels.neighbors.mining import MinedNeighbors, mine_neighbors
from fastdc.kernels.neighbors.op import Neighbors, RadiusNeighbors, knn, radius_neighbors

__all__ = [
    "AlgorithmChoice",
    "MinedNeighbors",
    "Neighbors",
    "RadiusNeighbors",
    "choose_algorithm",
    "explain_algorithms",
    "knn",
    "knn_graph",
    "mine_neighbors",
    "radius_neighbors",
]
