"""Information between rows and clusters: joint distributions, entropies, and the losses of IIC, RIM, IMSAT, VAT."""

from fastdc.kernels.mutual_information.joint import iic_loss, iic_loss_of_joint, joint_distribution
from fastdc.kernels.mutual_information.op import (
    EntropyStatistics,
    conditional_entropy,
    entropy_statistics,
    marginal_entropy,
    rim_loss,
    vat_kl,
)

__all__ = [
    "EntropyStatistics",
    "conditional_entropy",
    "entropy_statistics",
    "iic_loss",
    "iic_loss_of_joint",
    "joint_distribution",
    "marginal_entropy",
    "rim_loss",
    "vat_kl",
]
