"""Deep clustering methods, one file a family, one short class a method."""

from fastdc.catalog import list_methods
from fastdc.methods._deep import DeepClusterer
from fastdc.methods._pretrained import PretrainedClusterer
from fastdc.methods.graph import N2D, SpectralNet
from fastdc.methods.information import IIC, IMSAT
from fastdc.methods.self_training import DEC, IDEC

__all__ = [
    "DEC",
    "IDEC",
    "IIC",
    "IMSAT",
    "N2D",
    "DeepClusterer",
    "PretrainedClusterer",
    "SpectralNet",
    "list_methods",
]
