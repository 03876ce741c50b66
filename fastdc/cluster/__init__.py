"""Estimators on fixed features."""

from fastdc.cluster.balanced import BalancedKMeans
from fastdc.cluster.dbscan import DBSCAN
from fastdc.cluster.density_peaks import DensityPeaks
from fastdc.cluster.gaussian_mixture import GaussianMixture
from fastdc.cluster.kmeans import KMeans
from fastdc.cluster.mini_batch import MiniBatchKMeans
from fastdc.cluster.spectral import SpectralClustering
from fastdc.cluster.spherical import SphericalKMeans
from fastdc.cluster.subspace import SubspaceClustering

__all__ = [
    "DBSCAN",
    "BalancedKMeans",
    "DensityPeaks",
    "GaussianMixture",
    "KMeans",
    "MiniBatchKMeans",
    "SpectralClustering",
    "SphericalKMeans",
    "SubspaceClustering",
]
