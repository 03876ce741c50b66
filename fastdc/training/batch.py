"""What one step sees: some rows, views of them, and what networks and heads make of both, each computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from fastdc.distributed import Ranks

EMBED_ROWS = {"cpu": 256}  # rows of a network call outside training; fixed, so that a row's result is, too
EMBED_ROWS_GPU = 8192

Views = Callable[["Batch", Any], Sequence[Tensor]]
"""``views(batch, data)``: other forms of the rows of a batch, each of the shape of ``batch.x``.

``data[numbers]`` are rows of the data set. What is random draws from torch's global generator, which a fit seeds.
"""


class Batch:
    """The rows of one step. Embedding and reconstruction are computed once, when a term first asks.

    Parameters
    ----------
    network : nn.Module
        With ``encode``, and ``decode`` where a term asks for a reconstruction.
    x : Tensor of shape (n_rows, n_features)
    rows : Tensor of shape (n_rows,), int64
        Their numbers in the data set, to look up what a refresh left for them.
    data : Tensor or SourceRows of shape (n_samples, n_features), optional
        The data set, to take rows by their numbers; ``x`` if not given.
    make_views : callable, optional
        Makes ``views`` when a term first asks for them; without it the only view is the batch itself.

    Attributes
    ----------
    ranks : Ranks
        The processes that share the step, each with rows of its own.
    """

    def __init__(
        self, network: nn.Module, x: Tensor, rows: Tensor, data: Any = None, make_views: Views | None = None
    ) -> None:
        self.network, self.x, self.rows = network, x, rows
        self.data = x if data is None else data
        self._make_views = make_views
        self._outputs: dict[nn.Module, Tensor] = {}
        self.ranks = Ranks()
        self.share = 1.0  # factor of a mean over these rows whose mean over processes is that over all their rows

    @cached_property
    def z(self) -> Tensor:
        """Embedding of the rows."""
        return self.network.encode(self.x)  # type: ignore[operator]

    @cached_property
    def reconstruction(self) -> Tensor:
        """The rows as the decoder makes them from ``z``."""
        return self.network.decode(self.z)  # type: ignore[operator]

    @cached_property
    def views(self) -> tuple[Batch, ...]:
        """The same rows in other forms; a view that is ``x`` itself is this batch."""
        if self._make_views is None:
            return (self,)
        made = self._make_views(self, self.data)
        return tuple(self if x is self.x else Batch(self.network, x, self.rows) for x in made)

    def through(self, head: nn.Module) -> Tensor:
        """``head(z)``, computed once for all terms that use the head."""
        if head not in self._outputs:
            self._outputs[head] = head(self.z)
        return self._outputs[head]

    def anew(self) -> Batch:
        """The same rows with nothing computed yet, for the next turn."""
        return self._of(self.x, self.rows)

    def split(self, n_parts: int) -> list[Batch]:
        """The rows in ``n_parts`` batches."""
        if n_parts == 1:
            return [self]
        parts = zip(self.x.tensor_split(n_parts), self.rows.tensor_split(n_parts))
        return [self._of(x, rows) for x, rows in parts if len(rows)]

    def _of(self, x: Tensor, rows: Tensor) -> Batch:
        batch = Batch(self.network, x, rows, self.data, self._make_views)
        batch.ranks, batch.share = self.ranks, self.share
        return batch


@torch.no_grad()
def embed(network: nn.Module, x: Tensor) -> Tensor:
    """Embedding of the rows of ``x``, in calls of one fixed number of rows.

    The last call is filled up with copies of its last row: a matrix product of one fixed shape gives a row
    the same bits whatever rows stand beside it, so a sample's label does not depend on the batch it is in.
    """
    was_training = network.training
    network.eval()
    try:
        size = EMBED_ROWS.get(x.device.type, EMBED_ROWS_GPU)
        parts = []
        for rows in x.split(size):
            missing = size - len(rows)
            full = torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])]) if missing else rows
            parts.append(network.encode(full)[: len(rows)])  # type: ignore[operator]
        return torch.cat(parts)
    finally:
        network.train(was_training)
