"""Density: how many points lie within a radius, and which of them hang together. No list of pairs is ever held."""

from fastdc.kernels.density.op import DensityClusters, density_clusters, radius_counts

__all__ = ["DensityClusters", "density_clusters", "radius_counts"]
