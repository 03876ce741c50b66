"""A fit that can be interrupted: its whole state between two epochs, in one file, from which it goes on to the bit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from fastdc._runs import check_same_run, read_run
from fastdc.distributed import Ranks
from fastdc.persistence import CheckpointError, parse_checkpoint, write_checkpoint

FILE = "training.safetensors"
SECONDS = 10.0  # from one checkpoint to the next


class Fit(Protocol):
    """What a checkpoint keeps of a trainer."""

    network: nn.Module
    head: nn.Module | None
    x: Any
    settings: Any
    ranks: Ranks
    order: torch.Generator
    scaler: torch.amp.GradScaler
    history: list[dict[str, Any]]


class Remembers(Protocol):
    """What a checkpoint keeps of a stage: its terms, and its ``memory`` where it has one."""

    def terms(self) -> list[nn.Module]: ...


class Position(NamedTuple):
    """Where a fit stands: in which stage, and there before which epoch and step, with which optimisers."""

    stage: int = 0
    epoch: int = 0
    step: int = 0
    optimizers: Sequence[dict[str, Any]] = ()


class Checkpoint:
    """Writes the state of a fit to a folder: after an epoch, every 10 seconds, and after each stage.

    Parameters
    ----------
    folder : Path or None
        None writes nothing.
    identity : dict
        What a fit must have in common with the checkpoint it goes on from.
    resume : bool
        Go on from what the folder holds, if anything.
    """

    def __init__(self, folder: Path | None, identity: dict[str, Any] | None = None, resume: bool = False) -> None:
        if folder is None and resume:
            raise ValueError("resume=True needs checkpoint=, the folder of the fit to go on with")
        self.path = None if folder is None else folder / FILE
        self.identity, self.resume = identity or {}, resume
        self._written = time.monotonic()

    def write_if_due(self, trainer: Fit, stages: Sequence[Remembers], position: Position) -> None:
        """Write if the last time is long enough ago."""
        if time.monotonic() - self._written >= SECONDS:
            self.write(trainer, stages, position)

    def write(self, trainer: Fit, stages: Sequence[Remembers], position: Position) -> None:
        """Write the state, atomically, on the first process."""
        if self.path is None or trainer.ranks.rank > 0:
            return
        tensors: dict[str, Tensor] = {"random.order": trainer.order.get_state(), "random.cpu": torch.get_rng_state()}
        if trainer.x.is_cuda:
            tensors["random.cuda"] = torch.cuda.get_rng_state(trainer.x.device)
        for name, module in _modules(trainer, stages).items():
            tensors |= {f"{name}.{key}": tensor for key, tensor in module.state_dict().items()}
        for name, memory in _memories(stages).items():
            tensors |= {f"{name}.{key}": tensor for key, tensor in memory.items()}
        optimizers = []
        for number, state in enumerate(position.optimizers):
            for index, values in state["state"].items():
                tensors |= {f"optimizer{number}.{index}.{key}": torch.as_tensor(v) for key, v in values.items()}
            optimizers.append(state["param_groups"])
        description = {
            "class": "Training",
            "identity": self.identity,
            "seed": trainer.settings.seed,
            "position": position[:3],
            "optimizers": optimizers,
            "scaler": trainer.scaler.state_dict(),
            "history": trainer.history,
        }
        write_checkpoint(self.path, tensors, description)
        self._written = time.monotonic()

    def restore(self, trainer: Fit, stages: Sequence[Remembers]) -> Position:
        """Put everything where the checkpoint has it, if there is one to go on from."""
        if self.path is None:
            return Position()
        content = trainer.ranks.from_first(lambda: read_run(self.path, self.resume))  # type: ignore[arg-type]
        if not content:
            return Position()
        tensors, description = parse_checkpoint(content, self.path)
        if description.get("class") != "Training":
            raise CheckpointError(f"{self.path} holds a {description.get('class')}, not a fit of a deep method")
        check_same_run(description["identity"], self.identity, self.path)
        device = trainer.x.device
        trainer.settings.seed = description["seed"]  # random_state=None drew another one
        trainer.order.set_state(tensors["random.order"])
        torch.set_rng_state(tensors["random.cpu"])
        if trainer.x.is_cuda and "random.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random.cuda"], device)
        for name, module in _modules(trainer, stages).items():
            module.to(device)
            module.load_state_dict(_below(name, tensors))
        for name, memory in _memories(stages).items():
            memory.clear()
            memory |= {key: tensor.to(device) for key, tensor in _below(name, tensors).items()}
        trainer.scaler.load_state_dict(description["scaler"])
        trainer.history[:] = description["history"]
        states = [_optimizer_state(number, groups, tensors) for number, groups in enumerate(description["optimizers"])]
        stage, epoch, step = description["position"]
        return Position(stage, epoch, step, states)


NO_CHECKPOINT = Checkpoint(None)


def _modules(trainer: Fit, stages: Sequence[Remembers]) -> dict[str, nn.Module]:
    """Everything with weights, by name."""
    named: dict[str, nn.Module] = {"network": trainer.network}
    if trainer.head is not None:
        named["head"] = trainer.head
    return named | {f"stage{i}.{j}": term for i, stage in enumerate(stages) for j, term in enumerate(stage.terms())}


def _memories(stages: Sequence[Remembers]) -> dict[str, dict[str, Tensor]]:
    """What stages and their terms remember, by name."""
    named = {f"memory{i}.stage": stage.memory for i, stage in enumerate(stages) if hasattr(stage, "memory")}
    for i, stage in enumerate(stages):
        named |= {f"memory{i}.{j}": term.memory for j, term in enumerate(stage.terms())}
    return named


def _below(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = name + "."
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _optimizer_state(number: int, groups: list[dict[str, Any]], tensors: dict[str, Tensor]) -> dict[str, Any]:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in _below(f"optimizer{number}", tensors).items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    return {"state": state, "param_groups": groups}
