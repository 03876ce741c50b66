"""Terms that tell each row from all others, and features from each other (IDFD)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fastdc.distributed import Ranks
from fastdc.kernels._checks import check_not_negative, check_positive
from fastdc.kernels.contrastive import feature_decorrelation, instance_discrimination
from fastdc.training import Batch, Term


class InstanceDiscrimination(Term):
    """Each row is to be told from all rows of the data by what is remembered of them, averaged over views.

    The memory has one embedding of each row, of length one: at first a random one, then the running mean of those that
    came by, brought back to length one.

    Parameters
    ----------
    temperature : float
    momentum : float
        Share of the old in that mean, from 0 to below 1.
    """

    name = "instances"

    def __init__(self, temperature: float = 1.0, momentum: float = 0.5) -> None:
        super().__init__()
        self.temperature = check_positive(temperature, "temperature")
        self.momentum = check_not_negative(momentum, "momentum")
        if momentum >= 1:
            raise ValueError(f"momentum must be from 0 to below 1, got {momentum}")

    def forward(self, batch: Batch) -> Tensor:
        bank = self._bank(batch)
        losses = [instance_discrimination(view.z, bank, batch.rows, self.temperature) for view in batch.views]
        return torch.stack(losses).mean()

    @torch.no_grad()
    def after_step(self, batch: Batch) -> None:
        bank = self._bank(batch)
        latest = torch.stack([normalize(view.z.to(bank), dim=1) for view in batch.views]).mean(0)
        rows, latest = batch.ranks.gather(batch.rows), batch.ranks.gather(latest)
        bank[rows] = normalize(self.momentum * bank[rows] + (1 - self.momentum) * latest, dim=1)

    def _bank(self, batch: Batch) -> Tensor:
        if "bank" not in self.memory:
            shape, generator = (len(batch.data), batch.views[0].z.shape[1]), torch.Generator().manual_seed(0)
            self.memory["bank"] = normalize(torch.randn(shape, generator=generator), dim=1).to(batch.x)
        return self.memory["bank"]


class FeatureDecorrelation(Term):
    """Columns of the embeddings of a batch, of length one, held against each other, averaged over views.

    Parameters
    ----------
    temperature : float
    group : None, "world" or torch.distributed.ProcessGroup
        Processes that share each batch: columns are those of all rows.
    """

    name = "decorrelation"

    def __init__(self, temperature: float = 2.0, group: Any = None) -> None:
        super().__init__()
        self.temperature = check_positive(temperature, "decorrelation_temperature")
        self.group = Ranks(group).group
        self.spans_group = self.group is not None

    def forward(self, batch: Batch) -> Tensor:
        losses = [feature_decorrelation(view.z, self.temperature, group=self.group) for view in batch.views]
        return torch.stack(losses).mean()
