"""Deep clustering methods, one file a family, one short class a method."""

from fastdc.methods._deep import DeepClusterer
from fastdc.methods.self_training import DEC, IDEC

__all__ = ["DEC", "IDEC", "DeepClusterer"]
