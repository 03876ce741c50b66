"""Runs of EM, and their state between two iterations in a file; see ``checkpoints.py``."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdc.cluster.checkpoints import RunFile, open_run
from fastdc.distributed import Ranks
from fastdc.kernels.gaussian_mixture import GMMParameters

FILE = "mixture.safetensors"


class MixtureRun(NamedTuple):
    """A run as far as it has come."""

    parameters: GMMParameters
    history: list[dict[str, Any]]
    converged: bool

    @property
    def bound(self) -> float:
        """Mean log-likelihood before the last update."""
        return self.history[-1]["lower_bound"]

    def is_better(self, other: MixtureRun | None) -> bool:
        return other is None or self.bound > other.bound


class SavedMixture(NamedTuple):
    """What a checkpoint holds: the run that was going on, the seed of the first, and the best run before."""

    number: int
    seed: int
    run: MixtureRun
    best: MixtureRun | None

    def pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """As a file holds it."""
        tensors: dict[str, Tensor] = {}
        description: dict[str, Any] = {"class": "MixtureRun", "number": self.number, "seed": self.seed}
        for name, run in (("run", self.run), ("best", self.best)):
            if run is not None:
                tensors |= {f"{name}.{key}": value for key, value in run.parameters._asdict().items()}
                description[name] = {"history": run.history, "converged": run.converged}
        return tensors, description


def open_mixture(
    folder: Any, identity: dict[str, Any], resume: bool, ranks: Ranks, device: torch.device
) -> tuple[RunFile, SavedMixture | None]:
    """A checkpoint to write to, and with ``resume`` what it holds already; raises as :func:`open_run` does."""
    path, found = open_run(folder, FILE, "MixtureRun", identity, resume, ranks)
    if found is None:
        return RunFile(path, identity), None
    tensors, description = found

    def run(name: str) -> MixtureRun:
        parameters = GMMParameters(*(tensors[f"{name}.{key}"].to(device) for key in GMMParameters._fields))
        return MixtureRun(parameters, description[name]["history"], description[name]["converged"])

    best = run("best") if "best" in description else None
    return RunFile(path, identity), SavedMixture(description["number"], description["seed"], run("run"), best)
