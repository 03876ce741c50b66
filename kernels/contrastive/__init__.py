"""Contrastive losses: rows against rows, without the matrix of their similarities, and columns against columns."""

from fastdc.kernels.contrastive.columns import cluster_contrast, feature_decorrelation
from fastdc.kernels.contrastive.op import info_nce, nt_xent, sup_con
from fastdc.kernels.contrastive.prototypes import (
    instance_discrimination,
    prototype_concentration,
    prototype_contrast,
)

__all__ = [
    "cluster_contrast",
    "feature_decorrelation",
    "info_nce",
    "instance_discrimination",
    "nt_xent",
    "prototype_concentration",
    "prototype_contrast",
    "sup_con",
]
