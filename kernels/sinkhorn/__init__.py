"""Balanced codes by Sinkhorn's iteration, and the swapped prediction of SwAV."""

from fastdc.kernels.sinkhorn.op import sinkhorn_assign, swapped_prediction_loss

__all__ = ["sinkhorn_assign", "swapped_prediction_loss"]
