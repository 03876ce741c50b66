"""Contrastive losses: rows against rows, without the matrix of their similarities."""

from fastdc.kernels.contrastive.op import info_nce, nt_xent, sup_con

__all__ = ["info_nce", "nt_xent", "sup_con"]
