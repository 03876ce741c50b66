"""Stages that train: one objective, or several by turns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fastdc.kernels._checks import check_positive
from fastdc.training.batch import Batch, Views
from fastdc.training.objective import Objective, Schedule, Term, as_objective
from fastdc.training.trainer import Record, Stage, Trainer

REFRESH_EPOCHS = 3  # between refreshes: one costs a third of an epoch of DEC, and digits prefer three to one
ADAM = partial(torch.optim.Adam, fused=True)


@dataclass
class LabelChange:
    """Stop when no more than the share ``tol`` of all labels changed between two refreshes, and no center was moved."""

    tol: float

    def __post_init__(self) -> None:
        if not self.tol >= 0:
            raise ValueError(f"tol must be a share of the labels, 0 or above, or None, got {self.tol}")

    def __call__(self, measured: Record) -> bool:
        settled = measured.get("label_change", math.inf) <= self.tol
        return settled and not measured.get("n_repaired_clusters", 0)


@dataclass(kw_only=True)
class Turn:
    """What one player does in a step: lower its objective by changing its modules.

    Attributes
    ----------
    objective : Term or Objective
    learning_rate : float
    modules : sequence of nn.Module or callable, optional
        What learns, or a function of the network that says it; None is the network and the modules of the objective.
    every : int
        It plays in one step out of so many.
    optimizer : callable
        ``optimizer(parameters, lr=...)``; fused Adam by default.
    decay : Schedule, optional
        Factor of the learning rate by the progress of the stage.
    """

    objective: Term | Objective
    learning_rate: float
    modules: Sequence[nn.Module] | Callable[[nn.Module], Sequence[nn.Module]] | None = None
    every: int = 1
    optimizer: Callable[..., torch.optim.Optimizer] = ADAM
    decay: Schedule | None = None

    def __post_init__(self) -> None:
        self.whole = as_objective(self.objective)


@dataclass
class Alternate(Stage):
    """Train by turns: in each step each player that is due takes one, on the same rows computed anew.

    Attributes
    ----------
    stage : str
        Its name in the history and on the progress bar.
    epochs : int
        Most passes over the data.
    turns : sequence of Turn
    views : Views, optional
        What makes ``batch.views``.
    update_interval : int or None
        Steps between refreshes of the terms from the embedding of the whole data set, the first before the
        first step; None is ``refresh_epochs`` epochs. Where no term needs a refresh there is none.
    until : callable or None
        Asked after each refresh but the first, with its measurements; True ends the stage.
    watch : Term, optional
        Refreshed like the terms, for what it measures; it has no loss.
    refresh_epochs : int
    whole : bool
        Take all rows at each step, in the order of the data, whatever the batch size; in one process.
    """

    stage: str
    epochs: int
    turns: Sequence[Turn]
    views: Views | None = None
    update_interval: int | None = None
    until: Callable[[Record], bool] | None = None
    watch: Term | None = None
    refresh_epochs: int = REFRESH_EPOCHS
    whole: bool = False

    def __post_init__(self) -> None:
        for turn in self.turns:
            check_positive(turn.learning_rate, f"learning rate of stage {self.stage!r}")

    def terms(self) -> list[nn.Module]:
        watch = [] if self.watch is None else [self.watch]
        return [*(term for turn in self.turns for term in turn.whole.terms), *watch]

    def run(self, trainer: Trainer) -> None:
        if self.whole and trainer.ranks.size > 1:
            raise ValueError(f"stage {self.stage!r} takes all rows at each step, in one process: pass group=None")
        players = [_Player(turn, trainer) for turn in self.turns]
        start = trainer.resumed()
        for player, state in zip(players, start.optimizers):
            player.optimizer.load_state_dict(state)
        for module in (trainer.network, *self.terms()):
            module.train()
        interval = self.update_interval or self.refresh_epochs * (1 if self.whole else trainer.steps_per_epoch)
        n_parts = 1 if self.whole else trainer.settings.accumulate
        refreshed = [term for term in self.terms() if term.needs_refresh]
        step = start.step
        epochs = range(start.epoch, self.epochs)
        bar = tqdm(
            total=self.epochs, initial=start.epoch, desc=self.stage, unit="epoch", disable=not trainer.settings.verbose
        )
        with bar:
            for epoch in epochs:
                for player in players:
                    player.start_epoch(epoch / self.epochs)
                for batch in trainer.epoch(self.views, self.whole):
                    if refreshed and step % interval == 0 and self._refresh(refreshed, trainer, epoch, step):
                        return
                    for player in players:
                        if step % player.turn.every == 0:
                            player.step(batch.anew() if len(players) > 1 else batch, trainer, n_parts)
                    step += 1
                record = self._measure(players, trainer, epoch)
                stop = trainer.record(**record)
                bar.set_postfix(loss=f"{record['loss']:.4g}", refresh=False)
                bar.update()
                if stop:
                    return
                trainer.keep(epoch + 1, step, [player.optimizer for player in players])

    def _refresh(self, terms: Sequence[nn.Module], trainer: Trainer, epoch: int, step: int) -> bool:
        """Refresh the terms; True if the stage is over."""
        z = trainer.embed()
        measured: dict[str, Tensor] = {}
        for term in terms:
            measured |= term.eval().refresh(z)  # type: ignore[operator]
            term.train()
        values = torch.stack([value.double() for value in measured.values()]).tolist() if measured else []
        record = dict(zip(measured, values))
        stop = trainer.record(stage=self.stage, epoch=epoch, step=step, **record)
        return stop or (step > 0 and self.until is not None and self.until(record))

    def _measure(self, players: Sequence[_Player], trainer: Trainer, epoch: int) -> Record:
        """Mean losses of the epoch, for the history."""
        trainer.average(_running(trainer.network, self.terms()))
        means = torch.cat([player.mean() for player in players])
        trainer.average([means])
        losses = means.tolist()
        named: dict[str, float] = {}
        for term, loss in zip((term for turn in self.turns for term in turn.whole.terms), losses):
            name = str(term.name)
            while name in named:
                name += "'"
            named[name] = loss
        weights = [weight for turn in self.turns for weight in turn.whole.weights]
        total = sum(weight * loss for weight, loss in zip(weights, losses))
        if not math.isfinite(total):
            bad = ", ".join(name for name, loss in named.items() if not math.isfinite(loss)) or "sum of each"
            rates = ", ".join(str(turn.learning_rate) for turn in self.turns)
            raise FloatingPointError(
                f"the {bad} loss became {total} in epoch {epoch} of stage {self.stage!r}: lower its learning rate "
                f"({rates}) or scale the data, for instance to zero mean and unit variance"
            )
        return {"stage": self.stage, "epoch": epoch, "loss": total, **named}


class Train(Alternate):
    """Minimise one objective.

    Parameters
    ----------
    objective : Term or Objective
    stage, epochs, views, update_interval, until, watch, refresh_epochs, whole
        See :class:`Alternate`.
    learning_rate, modules, optimizer, decay
        See :class:`Turn`.
    """

    def __init__(
        self,
        objective: Term | Objective,
        stage: str,
        epochs: int,
        learning_rate: float,
        update_interval: int | None = None,
        until: Callable[[Record], bool] | None = None,
        *,
        views: Views | None = None,
        watch: Term | None = None,
        refresh_epochs: int = REFRESH_EPOCHS,
        whole: bool = False,
        **of_turn: Any,
    ) -> None:
        turn = Turn(objective=objective, learning_rate=learning_rate, **of_turn)
        super().__init__(stage, epochs, [turn], views, update_interval, until, watch, refresh_epochs, whole)


def _running(network: nn.Module, terms: Sequence[nn.Module]) -> list[Tensor]:
    """What follows the rows that a process sees: buffers of the network, and of normalisations in the terms' heads."""
    norms = [part for term in terms for part in term.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    buffers = dict.fromkeys(buffer for module in (network, *norms) for buffer in module.buffers())
    return [buffer for buffer in buffers if buffer.is_floating_point()]


class _Player:
    """A turn at work: its objective, what learns, and the optimiser that changes it."""

    def __init__(self, turn: Turn, trainer: Trainer) -> None:
        self.turn, self.objective = turn, turn.whole
        self.objective.terms.to(trainer.x.device)
        modules = turn.modules(trainer.network) if callable(turn.modules) else turn.modules
        if modules is None:
            modules = [trainer.network, self.objective.terms]
        parameters = {p: None for module in modules for p in module.parameters() if p.requires_grad}
        self.trained = list(parameters)
        self.optimizer = turn.optimizer(self.trained, lr=turn.learning_rate)
        self.sums, self.count = torch.zeros(len(self.objective.terms), dtype=torch.float64), 0

    def start_epoch(self, progress: float) -> None:
        self.objective.start_epoch(progress)
        self.sums, self.count = 0.0 * self.sums, 0
        if self.turn.decay is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = self.turn.learning_rate * self.turn.decay(progress)

    def step(self, batch: Batch, trainer: Trainer, n_parts: int) -> None:
        """One step of the optimiser, from the gradients of parts of the batch. The losses stay on the device."""
        parts = batch.split(n_parts)
        for part in parts:
            with trainer.autocast():
                total, losses = self.objective(part)
            share = len(part.rows) / len(batch.rows)
            if total.requires_grad:
                trainer.scaler.scale(share * total if len(parts) > 1 else total).backward(inputs=self.trained)
            self.sums = self.sums.to(losses.device) + share * losses
        trainer.average([p.grad for p in self.trained if p.grad is not None])
        trainer.scaler.step(self.optimizer)
        trainer.scaler.update()
        self.optimizer.zero_grad()
        for term in self.objective.terms:
            term.after_step(batch)  # type: ignore[operator]
        self.count += 1

    def mean(self) -> Tensor:
        """Of the losses of the epoch's steps."""
        return self.sums / max(self.count, 1)
