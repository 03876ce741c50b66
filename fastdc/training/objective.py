"""Terms, their weights, and the sum that is minimised."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastdc.training.batch import Batch

Schedule = Callable[[float], float]
"""A number by the progress of its stage, which goes from 0 (first epoch) towards 1 (end)."""


@dataclass(frozen=True)
class Ramp:
    """A schedule: from ``start`` in a straight line to ``stop``, which is reached at progress ``until``.

    ``Ramp(0, 1) * term`` fades a term in; ``Ramp(1, 0, until=0.5) * term`` has it gone by half of the epochs.
    """

    start: float
    stop: float
    until: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.until <= 1:
            raise ValueError(f"until must be a progress above 0 and at most 1, got {self.until}")

    def __call__(self, progress: float) -> float:
        return self.start + (self.stop - self.start) * min(progress / self.until, 1.0)

    def __mul__(self, term: Term) -> Objective:
        return Objective([(self, term)])


class Term(nn.Module):
    """A loss with a name. Modules assigned to it (a head, say) are trained with it.

    ``term + other`` and ``weight * term`` make an :class:`Objective`; a weight is a number >= 0 or a
    :data:`Schedule`. A term says its loss in :meth:`forward`; the other methods are occasions to do something else.

    Attributes
    ----------
    name : str
        Of the loss in the history.
    needs_refresh : bool
        Whether :meth:`refresh` wants to be called.
    spans_group : bool
        Whether the loss of a process is already such that its mean over processes is that of all their rows, as
        that of an operator with ``group=``. Losses are means over the rows of a batch otherwise.
    memory : dict of str to Tensor
        What steps and refreshes leave for later ones. A checkpoint keeps it, and nothing else that is no parameter
        or buffer.
    """

    name = "loss"
    needs_refresh = False
    spans_group = False

    def __init__(self) -> None:
        super().__init__()
        self.memory: dict[str, Tensor] = {}

    def forward(self, batch: Batch) -> Tensor:
        """The loss of one batch, zero-dimensional."""
        raise NotImplementedError(f"{type(self).__name__} must say what its loss is: def forward(self, batch)")

    def refresh(self, z: Tensor) -> dict[str, Tensor]:
        """Look at the embedding of all rows; return zero-dimensional measurements for the history."""
        return {}

    def start_epoch(self, progress: float) -> None:
        """An epoch begins: change what goes by the progress of the stage, such as a temperature."""

    def after_step(self, batch: Batch) -> None:
        """The optimiser has stepped: update what gradients do not, such as running means or a memory bank."""

    def __rmul__(self, weight: float | Schedule) -> Objective:
        return Objective([(weight, self)])

    def __add__(self, other: Term | Objective) -> Objective:
        return 1.0 * self + other


class Objective:
    """A weighted sum of terms."""

    def __init__(self, parts: Sequence[tuple[float | Schedule, Term]]) -> None:
        self.parts = [(_constant(weight, term) if not callable(weight) else weight, term) for weight, term in parts]
        self.terms = nn.ModuleList([term for _, term in parts])
        self.weights = self._weights_at(0.0)

    def __add__(self, other: Term | Objective) -> Objective:
        return Objective([*self.parts, *as_objective(other).parts])

    def start_epoch(self, progress: float) -> None:
        """Set the weights that go by progress, and tell the terms."""
        self.weights = self._weights_at(progress)
        for term in self.terms:
            term.start_epoch(progress)  # type: ignore[operator]

    def _weights_at(self, progress: float) -> list[float]:
        return [_check(weight(progress), term) for weight, term in self.parts]

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(what is minimised, the losses of the terms, detached and unweighted). Terms of weight 0 are left out."""
        losses = [
            (term(batch) if term.spans_group else batch.share * term(batch)) if weight else batch.x.new_zeros(())
            for weight, term in zip(self.weights, self.terms)
        ]
        total = sum((weight * loss for weight, loss in zip(self.weights, losses)), start=losses[0].new_zeros(()))
        return total, torch.stack([loss.detach() for loss in losses])


def as_objective(objective: Term | Objective) -> Objective:
    """A single term is the sum of itself."""
    return 1.0 * objective if isinstance(objective, Term) else objective


def _constant(weight: float, term: Term) -> Schedule:
    _check(weight, term)
    return lambda progress: weight


def _check(weight: float, term: Term) -> float:
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"the weight of the {term.name} loss must be finite and >= 0, got {weight}")
    return weight
