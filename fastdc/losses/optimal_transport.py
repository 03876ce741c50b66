"""Losses whose targets are balanced by optimal transport."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastdc.kernels.sinkhorn import optimal_transport_loss, swapped_prediction_loss


class SwAVLoss(nn.Module):
    """The swapped prediction of SwAV with prototypes as its parameter: :func:`fastdc.swapped_prediction_loss`.

    Parameters
    ----------
    n_features, n_prototypes : int
        Of the embeddings, and how many prototypes there are; they start as random directions.
    temperature, epsilon, n_iters
        As in :func:`fastdc.swapped_prediction_loss`.
    normalize : bool
        Whether embeddings and prototypes are given length one first, as in SwAV.
    queue_length : int
        Embeddings of earlier batches that each view's codes are balanced with, as in SwAV's queue: the buffer
        ``queue`` of shape (2, queue_length, n_features), newest first, part of ``state_dict``. It fills in training
        mode and takes part once it is full. With a group each process has a queue of its own:
        ``DistributedDataParallel`` needs ``broadcast_buffers=False`` then.
    group : torch.distributed.ProcessGroup, optional
        As in :func:`fastdc.swapped_prediction_loss`. Not part of ``state_dict``.

    Examples
    --------
    >>> import torch
    >>> criterion = SwAVLoss(8, 5)
    >>> loss = criterion(torch.randn(20, 8), torch.randn(20, 8))
    >>> loss.backward()
    >>> criterion.prototypes.grad.shape
    torch.Size([5, 8])
    """

    queue: Tensor
    n_queued: Tensor

    def __init__(
        self,
        n_features: int,
        n_prototypes: int,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        n_iters: int = 3,
        normalize: bool = True,
        queue_length: int = 0,
        group: Any = None,
    ) -> None:
        super().__init__()
        if queue_length < 0:
            raise ValueError(f"queue_length must be 0 or above, got {queue_length}")
        self.prototypes = nn.Parameter(nn.functional.normalize(torch.randn(n_prototypes, n_features)))
        self.temperature, self.epsilon, self.n_iters = temperature, epsilon, n_iters
        self.normalize, self.group = normalize, group
        self.register_buffer("queue", torch.zeros(2, queue_length, n_features))
        self.register_buffer("n_queued", torch.zeros((), dtype=torch.int64))

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """The loss of the embeddings of two views of the same samples."""
        prototypes: Tensor = self.prototypes
        if self.normalize:
            z1, z2, prototypes = (nn.functional.normalize(t, dim=1) for t in (z1, z2, prototypes))
        length = self.queue.shape[1]
        queue = self.queue if length and int(self.n_queued) >= length else None
        loss = swapped_prediction_loss(
            z1, z2, prototypes, self.temperature, self.epsilon, self.n_iters, queue, self.group
        )
        if self.training and length:
            self._push(torch.stack([z1, z2]).detach().to(self.queue.dtype))
        return loss

    def _push(self, rows: Tensor) -> None:
        """New rows first; what was there is replaced, never written to, since a backward pass may need it."""
        self.queue = torch.cat([rows, self.queue], dim=1)[:, : self.queue.shape[1]]
        self.n_queued = (self.n_queued + rows.shape[1]).clamp(max=self.queue.shape[1])


class OptimalTransportLoss(nn.Module):
    """Clusters of given sizes by optimal transport to centers, its parameter: :func:`fastdc.optimal_transport_loss`.

    Parameters
    ----------
    centers : Tensor of shape (n_clusters, n_features)
        Where the centers start, such as those of k-means; copied.
    epsilon, n_iters, tol
        As in :func:`fastdc.optimal_transport_loss`.
    column_marginal : Tensor of shape (n_clusters,), optional
        Wanted masses of the clusters, uniform by default; a buffer.

    Examples
    --------
    >>> import torch
    >>> criterion = OptimalTransportLoss(torch.tensor([[0.5], [3.5]]))
    >>> loss = criterion(torch.tensor([[0.0], [1.0], [3.0], [4.0]]))
    >>> loss.backward()
    >>> round(loss.item(), 4)
    0.25
    """

    column_marginal: Tensor | None

    def __init__(
        self,
        centers: Tensor,
        epsilon: float = 0.1,
        n_iters: int = 100,
        column_marginal: Tensor | None = None,
        tol: float | None = 1e-4,
    ) -> None:
        super().__init__()
        self.centers = nn.Parameter(centers.detach().clone())
        self.epsilon, self.n_iters, self.tol = epsilon, n_iters, tol
        self.register_buffer("column_marginal", column_marginal)

    def forward(self, x: Tensor, row_marginal: Tensor | None = None) -> Tensor:
        """The loss of the rows, whose weights are uniform where none are given."""
        return optimal_transport_loss(
            x, self.centers, self.epsilon, self.n_iters, row_marginal, self.column_marginal, self.tol
        )
