"""Terms: the losses that methods are put together from, each one of the library's kernels and what it needs to know.

A term is added to others and weighed: ``Reconstruction() + 0.1 * StudentT(head)``. A new one is a class with a
``forward(batch)``: see :class:`fastdc.training.Term` and :class:`fastdc.training.Batch`.
"""

from fastdc.terms.adversarial import Criticism, Deception
from fastdc.terms.centroids import KMeansDistance, StudentT
from fastdc.terms.contrastive import ClusterContrast, InstanceContrast, StudentTOfRows
from fastdc.terms.evidence import Likelihood, MixtureEvidence
from fastdc.terms.graph import GraphTarget, SiameseContrast, SpectralRelaxation
from fastdc.terms.information import Information, MutualInformation, SelfAugmentation
from fastdc.terms.instances import FeatureDecorrelation, InstanceDiscrimination
from fastdc.terms.layerwise import BalancedTarget, LayerReconstruction, NoisyPass
from fastdc.terms.optimal_transport import OptimalTransport
from fastdc.terms.pairwise import PairwiseAgreement
from fastdc.terms.pseudo_labels import ClusterClassification, ConfidentLabels, NeighborConsistency
from fastdc.terms.reconstruction import Reconstruction
from fastdc.terms.repairing import RepairingWatch
from fastdc.terms.running_means import RunningMeans
from fastdc.terms.self_expression import ExpressedReconstruction, SelfExpressive
from fastdc.terms.transport import SwappedPrediction, TransportLabels
from fastdc.terms.watch import Watch

__all__ = [
    "BalancedTarget",
    "ClusterClassification",
    "ClusterContrast",
    "ConfidentLabels",
    "Criticism",
    "Deception",
    "ExpressedReconstruction",
    "FeatureDecorrelation",
    "GraphTarget",
    "Information",
    "InstanceContrast",
    "InstanceDiscrimination",
    "KMeansDistance",
    "LayerReconstruction",
    "Likelihood",
    "MixtureEvidence",
    "MutualInformation",
    "NeighborConsistency",
    "NoisyPass",
    "OptimalTransport",
    "PairwiseAgreement",
    "Reconstruction",
    "RepairingWatch",
    "RunningMeans",
    "SelfAugmentation",
    "SelfExpressive",
    "SiameseContrast",
    "SpectralRelaxation",
    "StudentT",
    "StudentTOfRows",
    "SwappedPrediction",
    "TransportLabels",
    "Watch",
]
