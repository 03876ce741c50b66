"""Estimators on fixed features."""

from fastdc.cluster.kmeans import KMeans

__all__ = ["KMeans"]
