"""K-means: nearest centers, Lloyd passes, new centers, k-means++, empty clusters, capacities, a loss."""

from fastdc.kernels.kmeans.balanced import BalancedAssignment, balanced_assignment
from fastdc.kernels.kmeans.bounds import LloydSteps
from fastdc.kernels.kmeans.loss import kmeans_loss
from fastdc.kernels.kmeans.op import (
    KMeansStep,
    NearestCenter,
    center_update,
    kmeans_step,
    nearest_center,
    repair_empty,
)
from fastdc.kernels.kmeans.parallel import kmeans_parallel
from fastdc.kernels.kmeans.plusplus import KMeansPlusPlus, kmeans_plusplus

__all__ = [
    "BalancedAssignment",
    "KMeansPlusPlus",
    "KMeansStep",
    "LloydSteps",
    "NearestCenter",
    "balanced_assignment",
    "center_update",
    "kmeans_loss",
    "kmeans_parallel",
    "kmeans_plusplus",
    "kmeans_step",
    "nearest_center",
    "repair_empty",
]
