"""Contrastive losses: rows of one thing near each other, rows of others apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from fastdc.kernels.contrastive import (
    cluster_contrast,
    feature_decorrelation,
    info_nce,
    instance_discrimination,
    nt_xent,
    prototype_contrast,
    sup_con,
)


class NTXentLoss(nn.Module):
    """The loss of SimCLR: :func:`fastdc.nt_xent`.

    Parameters
    ----------
    temperature, normalize
        As in :func:`fastdc.nt_xent`.
    gather_distributed : bool
        Whether rows of all processes are keys, where ``torch.distributed`` runs more than one.
    group : torch.distributed.ProcessGroup, optional
        These processes, instead of all.

    Examples
    --------
    >>> import torch
    >>> criterion = NTXentLoss(temperature=0.5)
    >>> criterion(torch.eye(3), torch.eye(3)).round(decimals=3)
    tensor(0.4330)
    """

    def __init__(
        self, temperature: float = 0.5, normalize: bool = True, gather_distributed: bool = False, group: Any = None
    ) -> None:
        super().__init__()
        self.temperature, self.normalize = temperature, normalize
        self.gather_distributed, self.group = gather_distributed, group

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """The loss of the embeddings of two views of the same samples."""
        group = _group_of(self.group, self.gather_distributed)
        return nt_xent(z1, z2, self.temperature, self.normalize, group=group)


class InfoNCELoss(nn.Module):
    """Queries against keys: :func:`fastdc.info_nce`, with a memory bank if wanted (MoCo).

    Parameters
    ----------
    temperature, symmetric, normalize
        As in :func:`fastdc.info_nce`.
    memory_bank_size : int
        How many keys of past calls are further negatives; 0 for none. They are kept in a buffer, first in, first
        out, when the module trains; before it is full only what has come is used.
    gather_distributed, group
        As in :class:`NTXentLoss`. A memory bank does not go with them.

    Examples
    --------
    >>> import torch
    >>> criterion = InfoNCELoss(symmetric=False, memory_bank_size=5)
    >>> for _ in range(3):
    ...     loss = criterion(torch.eye(4), torch.eye(4))
    >>> len(criterion.memory_bank)
    5
    """

    memory_bank: Tensor

    def __init__(
        self,
        temperature: float = 0.1,
        symmetric: bool = True,
        memory_bank_size: int = 0,
        normalize: bool = True,
        gather_distributed: bool = False,
        group: Any = None,
    ) -> None:
        super().__init__()
        if memory_bank_size < 0:
            raise ValueError(f"memory_bank_size must be 0 or above, got {memory_bank_size}")
        if memory_bank_size and (gather_distributed or group is not None):
            raise ValueError("memory_bank_size and gather_distributed or group exclude each other; set one of them")
        self.temperature, self.symmetric, self.normalize = temperature, symmetric, normalize
        self.memory_bank_size = memory_bank_size
        self.gather_distributed, self.group = gather_distributed, group
        self.register_buffer("memory_bank", torch.empty(0, 0), persistent=False)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """The loss; keys join the memory bank afterwards."""
        bank = self.memory_bank if len(self.memory_bank) else None
        loss = info_nce(
            queries,
            keys,
            self.temperature,
            self.symmetric,
            bank,
            self.normalize,
            group=_group_of(self.group, self.gather_distributed),
        )
        if self.training and self.memory_bank_size:
            latest = keys.detach() if bank is None else torch.cat([keys.detach(), bank.to(keys)])
            self.memory_bank = latest[: self.memory_bank_size].clone()
        return loss


class SupConLoss(nn.Module):
    """The supervised contrastive loss: :func:`fastdc.sup_con` on features with or without an axis of views.

    Parameters
    ----------
    temperature, normalize
        As in :func:`fastdc.sup_con`.
    base_temperature : float, optional
        The loss is multiplied by temperature / base_temperature, as in the authors' code; None leaves it as it is.
    gather_distributed, group
        As in :class:`NTXentLoss`.

    Examples
    --------
    >>> import torch
    >>> criterion = SupConLoss(temperature=0.5)
    >>> features = torch.eye(3)[:, None].expand(3, 2, 3)  # 3 samples, 2 views
    >>> bool(criterion(features) == criterion(features, torch.tensor([7, 8, 9])))
    True
    """

    def __init__(
        self,
        temperature: float = 0.07,
        base_temperature: float | None = None,
        normalize: bool = True,
        gather_distributed: bool = False,
        group: Any = None,
    ) -> None:
        super().__init__()
        self.temperature, self.normalize = temperature, normalize
        self.factor = 1.0 if base_temperature is None else temperature / base_temperature
        self.gather_distributed, self.group = gather_distributed, group

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """The loss of features (n_samples, n_features) or (n_samples, n_views, n_features).

        Without labels each sample has its own, and views are needed; with a group labels are needed.
        """
        group = _group_of(self.group, self.gather_distributed)
        if labels is None:
            if features.ndim != 3 or group is not None:
                raise ValueError(
                    "labels is None, which needs features of shape (n_samples, n_views, n_features) in one process, "
                    f"got shape {tuple(features.shape)}{'' if group is None else ' and a group'}; pass labels"
                )
            labels = torch.arange(features.shape[0], device=features.device)
        if features.ndim == 3:
            labels = labels.repeat_interleave(features.shape[1])
            features = features.flatten(0, 1)
        return self.factor * sup_con(features, labels, self.temperature, self.normalize, group=group)


class ClusterContrastLoss(nn.Module):
    """The cluster loss of Contrastive Clustering: :func:`fastdc.cluster_contrast`.

    Parameters
    ----------
    temperature, balance
        As in :func:`fastdc.cluster_contrast`.
    gather_distributed, group
        As in :class:`NTXentLoss`; products are summed, nothing is gathered.

    Examples
    --------
    >>> import torch
    >>> criterion = ClusterContrastLoss()
    >>> p = torch.eye(3).repeat(4, 1)
    >>> criterion(p, p).round(decimals=3)
    tensor(0.9050)
    """

    def __init__(
        self, temperature: float = 1.0, balance: float = 1.0, gather_distributed: bool = False, group: Any = None
    ) -> None:
        super().__init__()
        self.temperature, self.balance = temperature, balance
        self.gather_distributed, self.group = gather_distributed, group

    def forward(self, p1: Tensor, p2: Tensor) -> Tensor:
        """The loss of the cluster probabilities of two views of the same samples."""
        group = _group_of(self.group, self.gather_distributed)
        return cluster_contrast(p1, p2, self.temperature, self.balance, group=group)


class PrototypeContrastLoss(nn.Module):
    """Rows against prototypes: :func:`fastdc.prototype_contrast`, averaged over clusterings (ProtoNCE of PCL).

    Parameters
    ----------
    temperature, normalize
        As in :func:`fastdc.prototype_contrast`; where temperatures are given to the call, those count.
    gather_distributed, group
        As in :class:`NTXentLoss`; nothing is gathered.

    Examples
    --------
    >>> import torch
    >>> criterion = PrototypeContrastLoss()
    >>> z, labels = torch.eye(4), torch.tensor([0, 0, 1, 1])
    >>> coarse, fine = (z[:2], labels), (z, torch.arange(4))
    >>> both = criterion(z, [coarse[0], fine[0]], [coarse[1], fine[1]])
    >>> bool(both.isclose((criterion(z, *coarse) + criterion(z, *fine)) / 2))
    True
    """

    def __init__(
        self, temperature: float = 0.1, normalize: bool = True, gather_distributed: bool = False, group: Any = None
    ) -> None:
        super().__init__()
        self.temperature, self.normalize = temperature, normalize
        self.gather_distributed, self.group = gather_distributed, group

    def forward(
        self,
        z: Tensor,
        prototypes: Tensor | Sequence[Tensor],
        labels: Tensor | Sequence[Tensor],
        temperatures: Tensor | Sequence[Tensor] | None = None,
    ) -> Tensor:
        """The loss of one clustering of z, or the mean of that of several."""
        group = _group_of(self.group, self.gather_distributed)
        if isinstance(prototypes, Tensor):
            temperature = self.temperature if temperatures is None else temperatures
            return prototype_contrast(z, prototypes, labels, temperature, self.normalize, group=group)  # type: ignore[arg-type]
        each = [None] * len(prototypes) if temperatures is None else temperatures
        losses = [self(z, *clustering) for clustering in zip(prototypes, labels, each, strict=True)]
        return torch.stack(losses).mean()


class IDFDLoss(nn.Module):
    """The loss of IDFD: :func:`fastdc.instance_discrimination` and :func:`fastdc.feature_decorrelation` added up.

    Parameters
    ----------
    n_samples, n_features : int
        Of the whole data and of its embeddings; the memory bank, a buffer, has that shape. It starts at random rows
        of length one, drawn from torch's global generator.
    temperature, decorrelation_temperature : float
        Of the two losses.
    decorrelation_weight : float
        What the second is multiplied by.
    momentum : float from 0 to below 1
        In training a batch replaces its rows of the memory bank by momentum times the old row and 1 - momentum times
        the new one, both of length one.

    Examples
    --------
    >>> import torch
    >>> criterion = IDFDLoss(n_samples=10, n_features=3)
    >>> loss = criterion(torch.eye(3), torch.tensor([4, 0, 7]))
    >>> criterion.memory_bank.shape
    torch.Size([10, 3])
    """

    memory_bank: Tensor

    def __init__(
        self,
        n_samples: int,
        n_features: int,
        temperature: float = 1.0,
        decorrelation_temperature: float = 2.0,
        decorrelation_weight: float = 1.0,
        momentum: float = 0.5,
    ) -> None:
        super().__init__()
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"momentum must be from 0 to below 1, got {momentum}")
        self.temperature, self.decorrelation_temperature = temperature, decorrelation_temperature
        self.decorrelation_weight, self.momentum = decorrelation_weight, momentum
        self.register_buffer("memory_bank", normalize(torch.randn(n_samples, n_features), dim=1))

    def forward(self, z: Tensor, indices: Tensor) -> Tensor:
        """The loss of the embeddings of a batch; ``indices`` (int64) say which samples they are."""
        loss = instance_discrimination(z, self.memory_bank, indices, self.temperature)
        loss = loss + self.decorrelation_weight * feature_decorrelation(z, self.decorrelation_temperature)
        if self.training:
            with torch.no_grad():
                latest = normalize(z.to(self.memory_bank), dim=1)
                mixed = self.momentum * self.memory_bank[indices] + (1.0 - self.momentum) * latest
                self.memory_bank[indices] = normalize(mixed, dim=1)
        return loss


def _group_of(group: Any, gather_distributed: bool) -> Any:
    """The group that is meant; None where there is one process."""
    distributed = torch.distributed
    if group is None and gather_distributed and distributed.is_available() and distributed.is_initialized():
        group = distributed.group.WORLD
    return None if group is not None and distributed.get_world_size(group) == 1 else group
