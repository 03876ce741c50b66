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

__all__ = [
    "CenterDistances",
    "ClusterDispersion",
    "HardestPairs",
    "center_distances",
    "cluster_dispersion",
    "hardest_pairs",
    "silhouette_coefficients",
]
