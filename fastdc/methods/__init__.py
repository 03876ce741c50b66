"""Deep clustering methods, one file a family, one short class a method."""

from fastdc.catalog import list_methods
from fastdc.methods._deep import DeepClusterer
from fastdc.methods._pretrained import PretrainedClusterer
from fastdc.methods.adversarial import ClusterGAN
from fastdc.methods.contrastive import CC, IDFD, SCCL, SeLa, SwAV
from fastdc.methods.depict import DEPICT
from fastdc.methods.graph import N2D, SDCN, SpectralNet
from fastdc.methods.information import IIC, IMSAT
from fastdc.methods.kmeans_friendly import DCN, DKM, OptimalTransportClustering
from fastdc.methods.mixture import VaDE
from fastdc.methods.pairwise import DAC
from fastdc.methods.pseudo_labels import SCAN, DeepCluster
from fastdc.methods.self_training import DBC, DCEC, DEC, DECDA, IDEC
from fastdc.methods.subspace import DSCNet
from fastdc.methods.two_stage import TwoStage

__all__ = [
    "CC",
    "DAC",
    "DBC",
    "DCEC",
    "DCN",
    "DEC",
    "DECDA",
    "DEPICT",
    "DKM",
    "IDEC",
    "IDFD",
    "IIC",
    "IMSAT",
    "N2D",
    "SCAN",
    "SCCL",
    "SDCN",
    "ClusterGAN",
    "DSCNet",
    "DeepCluster",
    "DeepClusterer",
    "OptimalTransportClustering",
    "PretrainedClusterer",
    "SeLa",
    "SpectralNet",
    "SwAV",
    "TwoStage",
    "VaDE",
    "list_methods",
]
