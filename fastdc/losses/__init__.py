"""``nn.Module`` faces of the differentiable ops, for training code of one's own; one file a family."""

from fastdc.losses.contrastive import (
    ClusterContrastLoss,
    IDFDLoss,
    InfoNCELoss,
    NTXentLoss,
    PrototypeContrastLoss,
    SupConLoss,
)
from fastdc.losses.graph import LaplacianLoss, LocalityPreservingLoss, SCANLoss
from fastdc.losses.kmeans import KMeansLoss
from fastdc.losses.mixture import VaDELoss
from fastdc.losses.mutual_information import IICLoss, IMSATLoss
from fastdc.losses.optimal_transport import OptimalTransportLoss, SwAVLoss
from fastdc.losses.pairwise import PairwiseBCELoss, SoftNearestNeighborLoss, TripletLoss
from fastdc.losses.self_expression import SelfExpressionLoss
from fastdc.losses.self_training import DECLoss

__all__ = [
    "ClusterContrastLoss",
    "DECLoss",
    "IDFDLoss",
    "IICLoss",
    "IMSATLoss",
    "InfoNCELoss",
    "KMeansLoss",
    "LaplacianLoss",
    "LocalityPreservingLoss",
    "NTXentLoss",
    "OptimalTransportLoss",
    "PairwiseBCELoss",
    "PrototypeContrastLoss",
    "SCANLoss",
    "SelfExpressionLoss",
    "SoftNearestNeighborLoss",
    "SupConLoss",
    "SwAVLoss",
    "TripletLoss",
    "VaDELoss",
]
