"""The definition in plain torch: any device, float64 too. Written to be read, not to be fast.

Byte counts are for n anchors, m keys and s bytes a number.
"""

from __future__ import annotations

import torch
from torch import Tensor


def contrast_reference(
    anchors: Tensor,
    keys: Tensor | None,
    positives: Tensor | None,
    scale: float,
    self_offset: int,
    n_columns: int,
) -> tuple[Tensor, Tensor]:
    """(rows (n,), columns (n_columns,)): log-sum-exp of the scaled products, less the positive's.

    Without keys the anchors are their own, and self_offset is 0.
    """
    own_keys = anchors if keys is None else keys
    scores = anchors @ own_keys.T * scale  # writes 2 n m s
    if keys is None:
        self_offset = 0
    if self_offset >= 0:
        own = torch.arange(anchors.shape[0], device=scores.device)[:, None] + self_offset
        scores = scores.masked_fill(own == torch.arange(own_keys.shape[0], device=scores.device), -torch.inf)
    rows, columns = scores.logsumexp(dim=1), scores[:, :n_columns].logsumexp(dim=0)  # reads 2 n m s
    if positives is not None:
        of_positives = scores.gather(1, positives[:, None])[:, 0]
        rows = rows - of_positives
        if n_columns:
            columns = columns - torch.zeros_like(columns).index_copy(0, positives, of_positives)
    return rows, columns


def sup_con_reference(z: Tensor, labels: Tensor, scale: float) -> Tensor:
    """Loss of each row (n,), zero for one without positives."""
    scores = z @ z.T * scale  # writes 2 n^2 s
    own = torch.eye(z.shape[0], dtype=torch.bool, device=z.device)
    log_p = scores - scores.masked_fill(own, -torch.inf).logsumexp(dim=1, keepdim=True)  # moves 4 n^2 s
    positive = (labels[:, None] == labels) & ~own
    counts = positive.sum(dim=1)
    return -torch.where(positive, log_p, 0.0).sum(dim=1) / counts.clamp_min(1)
