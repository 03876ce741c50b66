"""Terms: the losses that methods are put together from, each one of the library's kernels and what it needs to know.

A term is added to others and weighed: ``Reconstruction() + 0.1 * StudentT(head)``. A new one is a class with a
``forward(batch)``: see :class:`fastdc.training.Term` and :class:`fastdc.training.Batch`.
"""

from fastdc.terms.centroids import KMeansDistance, StudentT
from fastdc.terms.graph import SiameseContrast, SpectralRelaxation
from fastdc.terms.information import Information, MutualInformation, SelfAugmentation
from fastdc.terms.reconstruction import Reconstruction
from fastdc.terms.watch import Watch

__all__ = [
    "Information",
    "KMeansDistance",
    "MutualInformation",
    "Reconstruction",
    "SelfAugmentation",
    "SiameseContrast",
    "SpectralRelaxation",
    "StudentT",
    "Watch",
]
