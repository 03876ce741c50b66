"""``nn.Module`` faces of the differentiable ops, for training code of one's own; one file a family."""

from fastdc.losses.optimal_transport import SwAVLoss
from fastdc.losses.self_training import DECLoss

__all__ = ["DECLoss", "SwAVLoss"]
