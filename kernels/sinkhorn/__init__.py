"""Balanced codes by Sinkhorn's iteration, the swapped prediction of SwAV, and optimal transport to centers."""

from fastdc.kernels.sinkhorn.op import sinkhorn_assign, swapped_prediction_loss
from fastdc.kernels.sinkhorn.transport import (
    TransportLabels,
    optimal_transport_labels,
    optimal_transport_loss,
    sinkhorn_assign_features,
)

__all__ = [
    "TransportLabels",
    "optimal_transport_labels",
    "optimal_transport_loss",
    "sinkhorn_assign",
    "sinkhorn_assign_features",
    "swapped_prediction_loss",
]
