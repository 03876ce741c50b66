"""K-means: nearest centers, one Lloyd pass with its sums, new centers, k-means++, empty clusters, capacities."""

from fastdc.kernels.kmeans.balanced import BalancedAssignment, balanced_assignment
from fastdc.kernels.kmeans.op import (
    KMeansStep,
    NearestCenter,
    center_update,
    kmeans_step,
    nearest_center,
    repair_empty,
)
from fastdc.kernels.kmeans.plusplus import KMeansPlusPlus, kmeans_plusplus

__all__ = [
    "BalancedAssignment",
    "KMeansPlusPlus",
    "KMeansStep",
    "NearestCenter",
    "balanced_assignment",
    "center_update",
    "kmeans_plusplus",
    "kmeans_step",
    "nearest_center",
    "repair_empty",
]
