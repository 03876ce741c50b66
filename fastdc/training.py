"""The one training loop. It knows stages, batches, refreshes and stopping, and nothing of any method.

A method is a sequence of stages. Most stages are :class:`Train`: an objective, minimised over batches of
rows. An objective is a weighted sum of terms; a term computes a loss from a :class:`Batch` and may be
refreshed from the embedding of the whole data set every so many steps. Data, losses and labels stay on the
device; the host waits once an epoch and once a refresh.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fastdc.kernels._checks import check_positive

Record = dict[str, Any]
EMBED_ROWS = {"cpu": 256}  # rows of a network call outside training; fixed, so that a row's result is, too
EMBED_ROWS_GPU = 8192
REFRESH_EPOCHS = 3  # between refreshes: one costs a third of an epoch of DEC, and digits prefer three to one


class Batch:
    """The rows of one step. Embedding and reconstruction are computed once, when a term first asks.

    Attributes
    ----------
    x : Tensor of shape (n_rows, n_features)
    rows : Tensor of shape (n_rows,), int64
        Their numbers in the data set, to look up what a refresh left for them.
    """

    def __init__(self, network: nn.Module, x: Tensor, rows: Tensor) -> None:
        self.network, self.x, self.rows = network, x, rows

    @cached_property
    def z(self) -> Tensor:
        """Embedding of the rows."""
        return self.network.encode(self.x)  # type: ignore[operator]

    @cached_property
    def reconstruction(self) -> Tensor:
        """The rows as the decoder makes them from ``z``."""
        return self.network.decode(self.z)  # type: ignore[operator]


class Term(nn.Module):
    """A loss with a name. Modules assigned to it (a head, say) are trained with it.

    ``term + other`` and ``weight * term`` make an :class:`Objective`.
    """

    name = "loss"
    needs_refresh = False

    def forward(self, batch: Batch) -> Tensor:
        """The loss of one batch, zero-dimensional."""
        raise NotImplementedError(f"{type(self).__name__} must say what its loss is: def forward(self, batch)")

    def refresh(self, z: Tensor) -> dict[str, Tensor]:
        """Look at the embedding of all rows; return zero-dimensional measurements for the history."""
        return {}

    def __rmul__(self, weight: float) -> Objective:
        return Objective([(weight, self)])

    def __add__(self, other: Term | Objective) -> Objective:
        return 1.0 * self + other


class Objective:
    """A weighted sum of terms."""

    def __init__(self, parts: Sequence[tuple[float, Term]]) -> None:
        for weight, term in parts:
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"the weight of the {term.name} loss must be finite and >= 0, got {weight}")
        self.weights = [weight for weight, _ in parts]
        self.terms = nn.ModuleList([term for _, term in parts])

    def __add__(self, other: Term | Objective) -> Objective:
        other = as_objective(other)
        return Objective([*zip(self.weights, self.terms), *zip(other.weights, other.terms)])  # type: ignore[list-item]

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(what is minimised, the losses of the terms, detached and unweighted)."""
        losses = [term(batch) for term in self.terms]
        total = sum((weight * loss for weight, loss in zip(self.weights, losses)), start=losses[0].new_zeros(()))
        return total, torch.stack([loss.detach() for loss in losses])


def as_objective(objective: Term | Objective) -> Objective:
    """A single term is the sum of itself."""
    return 1.0 * objective if isinstance(objective, Term) else objective


class Trainer:
    """What the stages of one fit share: the network, the data, the order of the rows and the history.

    Parameters
    ----------
    network : nn.Module
        With ``encode`` and ``decode``, on the device of ``x``.
    x : Tensor of shape (n_samples, n_features)
    batch_size : int
        Most rows of a batch. Batches of an epoch differ by at most one row.
    seed : int
        Of the order of the rows.
    callbacks : sequence of callables
        Called with each record of the history; one that returns True ends the running stage.
    verbose : bool
        A progress bar for each stage, on standard error.
    """

    def __init__(
        self,
        network: nn.Module,
        x: Tensor,
        *,
        batch_size: int,
        seed: int,
        callbacks: Sequence[Callable[[Record], Any]] = (),
        verbose: bool = False,
    ) -> None:
        self.network, self.x, self.batch_size, self.seed = network, x, batch_size, seed
        self.callbacks, self.verbose = callbacks, verbose
        self.history: list[Record] = []
        self._order = torch.Generator().manual_seed(seed)

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one pass over the data."""
        return -(-len(self.x) // self.batch_size)

    def epoch(self) -> Iterator[Batch]:
        """All rows once, in a new random order."""
        order = torch.randperm(len(self.x), generator=self._order).to(self.x.device)
        for rows in order.tensor_split(self.steps_per_epoch):
            yield Batch(self.network, self.x[rows], rows)

    def embed(self) -> Tensor:
        """Embedding of the whole data set, without dropout and the like."""
        return embed(self.network, self.x)

    def record(self, **entry: Any) -> bool:
        """Add to the history and tell the callbacks; True if one of them asks to stop."""
        self.history.append(entry)
        answers = [callback(entry) for callback in self.callbacks]
        return any(answer is True for answer in answers)


class Stage(Protocol):
    """One step of a method: training, initialising a head, anything that works on a :class:`Trainer`."""

    def run(self, trainer: Trainer) -> None: ...


@dataclass
class Train:
    """Minimise an objective with Adam.

    Attributes
    ----------
    objective : Term or Objective
    stage : str
        Its name in the history and on the progress bar.
    epochs : int
        Most passes over the data.
    learning_rate : float
    update_interval : int or None
        Steps between refreshes of the terms from the embedding of the whole data set, the first before the
        first step; None is three epochs. Where no term needs a refresh there is none.
    until : callable or None
        Asked after each refresh but the first, with its measurements; True ends the stage.
    """

    objective: Term | Objective
    stage: str
    epochs: int
    learning_rate: float
    update_interval: int | None = None
    until: Callable[[Record], bool] | None = None

    def __post_init__(self) -> None:
        check_positive(self.learning_rate, f"learning rate of stage {self.stage!r}")

    def run(self, trainer: Trainer) -> None:
        objective = as_objective(self.objective)
        objective.terms.to(trainer.x.device)
        parameters = [*trainer.network.parameters(), *objective.terms.parameters()]
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=self.learning_rate, fused=True)
        optimizer.zero_grad()
        trainer.network.train()
        interval = self.update_interval or REFRESH_EPOCHS * trainer.steps_per_epoch
        needs_refresh = any(term.needs_refresh for term in objective.terms)
        step = 0
        with tqdm(total=self.epochs, desc=self.stage, unit="epoch", disable=not trainer.verbose) as bar:
            for epoch in range(self.epochs):
                sums = torch.zeros(len(objective.terms), device=trainer.x.device, dtype=torch.float64)
                for batch in trainer.epoch():
                    due = needs_refresh and step % interval == 0
                    if due and self._refresh(objective, trainer, epoch, step):
                        return
                    total, losses = objective(batch)
                    total.backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    sums += losses
                    step += 1
                record = self._measure(objective, sums / trainer.steps_per_epoch, epoch)
                stop = trainer.record(**record)
                bar.set_postfix(loss=f"{record['loss']:.4g}", refresh=False)
                bar.update()
                if stop:
                    return

    def _refresh(self, objective: Objective, trainer: Trainer, epoch: int, step: int) -> bool:
        """Refresh the terms; True if the stage is over."""
        z = trainer.embed()
        measured: dict[str, Tensor] = {}
        for term in objective.terms:
            measured |= term.refresh(z)  # type: ignore[operator]
        values = torch.stack([value.double() for value in measured.values()]).tolist()
        record = dict(zip(measured, values))
        stop = trainer.record(stage=self.stage, epoch=epoch, step=step, **record)
        return stop or (step > 0 and self.until is not None and self.until(record))

    def _measure(self, objective: Objective, means: Tensor, epoch: int) -> Record:
        losses = means.tolist()
        total = sum(weight * loss for weight, loss in zip(objective.weights, losses))
        if not math.isfinite(total):
            raise FloatingPointError(
                f"the loss became {total} in epoch {epoch} of stage {self.stage!r}: lower its learning rate "
                f"({self.learning_rate}) or scale the data, for instance to zero mean and unit variance"
            )
        named = {str(term.name): loss for term, loss in zip(objective.terms, losses)}
        return {"stage": self.stage, "epoch": epoch, "loss": total, **named}


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


@contextmanager
def private_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators for modules that draw from them (dropout), and put them back."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
