"""Estimators on fixed features."""

from fastdc.cluster.gaussian_mixture import GaussianMixture
from fastdc.cluster.kmeans import KMeans

__all__ = ["GaussianMixture", "KMeans"]
