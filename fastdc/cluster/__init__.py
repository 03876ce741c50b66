"""Estimators on fixed features."""

from fastdc.cluster.balanced import BalancedKMeans
from fastdc.cluster.bisecting import BisectingKMeans
from fastdc.cluster.dbscan import DBSCAN
from fastdc.cluster.density_peaks import DensityPeaks
from fastdc.cluster.gaussian_mixture import GaussianMixture
from fastdc.cluster.k_sweep import KSweep, choose_k
from fastdc.cluster.kmeans import KMeans
from fastdc.cluster.mini_batch import MiniBatchKMeans
from fastdc.cluster.spectral import SpectralClustering
from fastdc.cluster.spherical import SphericalKMeans
from fastdc.cluster.subspace import SubspaceClustering
from fastdc.cluster.two_level import TwoLevelKMeans

__all__ = [
    "DBSCAN",
    "BalancedKMeans",
    "BisectingKMeans",
    "DensityPeaks",
    "GaussianMixture",
    "KMeans",
    "KSweep",
    "MiniBatchKMeans",
    "SpectralClustering",
    "SphericalKMeans",
    "SubspaceClustering",
    "TwoLevelKMeans",
    "choose_k",
]
