"""Distances and similarities of all pairs, never held: silhouettes, hardest pairs, and losses over pairs."""

from fastdc.kernels.pairwise.clusters import (
    CenterDistances,
    ClusterDispersion,
    HardestPairs,
    center_distances,
    cluster_dispersion,
    hardest_pairs,
    silhouette_coefficients,
)
from fastdc.kernels.pairwise.losses import pairwise_bce, soft_nearest_neighbor_loss, triplet_loss

__all__ = [
    "CenterDistances",
    "ClusterDispersion",
    "HardestPairs",
    "center_distances",
    "cluster_dispersion",
    "hardest_pairs",
    "pairwise_bce",
    "silhouette_coefficients",
    "soft_nearest_neighbor_loss",
    "triplet_loss",
]
