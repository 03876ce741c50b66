"""A fit of k-means that can be interrupted: its state between two iterations, in a folder.

The state is small: centers, the history so far, and where the random numbers stand. Labels are not saved, for they
follow from centers in one pass. So it does not matter by how many processes a fit is continued.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastdc._runs import check_same_run, digest, read_run, some_rows
from fastdc.cluster.lloyd import Progress, Record, Solution
from fastdc.cluster.streaming import StreamedRows
from fastdc.distributed import Ranks
from fastdc.persistence import CheckpointError, parse_checkpoint, write_checkpoint

FILE = "kmeans.safetensors"
SECONDS = 10.0  # from one checkpoint to the next


class Best(NamedTuple):
    """The best of the runs that are over."""

    centers: Tensor
    inertia: float
    history: list[Record]


class Saved(NamedTuple):
    """What a checkpoint holds: the run that was going on, the random state after its start, the best run before."""

    run: int
    progress: Progress
    random: dict[str, Any]
    best: Best | None


class Checkpoint:
    """Writes the progress of runs to a folder: every 10 seconds, and when its ``with`` block ends, however it does.

    Parameters
    ----------
    path : Path or None
        The file; None writes nothing, as on ranks other than the first.
    identity : dict
        What the checkpoint is of: see :func:`identity_of`.
    """

    def __init__(self, path: Path | None, identity: dict[str, Any]) -> None:
        self.path, self.identity = path, identity
        self._latest: Saved | None = None  # not yet written
        self._written = time.monotonic()

    def begin(self, run: int, random: np.random.Generator, best: Solution | None) -> None:
        """A run starts from centers that have been drawn."""
        known = None if best is None else Best(best.centers, best.inertia, best.history)
        self._run, self._random, self._best = run, dict(random.bit_generator.state), known

    def keep(self, progress: Progress) -> None:
        """Remember the progress of the run; write it when it is time."""
        self._latest = Saved(self._run, progress, self._random, self._best)
        if time.monotonic() - self._written >= SECONDS:
            self._write()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self._write()

    def _write(self) -> None:
        saved, self._latest = self._latest, None
        if saved is None or self.path is None:
            return
        progress, best = saved.progress, saved.best
        tensors = {"before": progress.before, "centers": progress.centers}
        description = {"class": "KMeansRun", "identity": self.identity, "run": saved.run, "random": saved.random}
        description |= {"history": progress.history, "is_over": progress.is_over}
        if best is not None:
            tensors["best_centers"] = best.centers
            description["best"] = {"inertia": best.inertia, "history": best.history}
        write_checkpoint(self.path, tensors, description)
        self._written = time.monotonic()


def open_checkpoint(
    folder: Any, identity: dict[str, Any], resume: bool, ranks: Ranks, device: torch.device
) -> tuple[Checkpoint, Saved | None]:
    """A checkpoint to write to, and with ``resume`` what it holds already.

    Raises
    ------
    FileExistsError
        If the folder holds a checkpoint and ``resume`` is False.
    CheckpointError
        If it is damaged, or of other data or parameters.
    """
    if folder is None:
        if resume:
            raise ValueError("resume=True needs checkpoint=, the folder of the run to go on with")
        return Checkpoint(None, identity), None
    path = Path(folder) / FILE
    content = ranks.from_first(lambda: read_run(path, resume))
    saved = _parse(content, path, identity, device) if content else None
    return Checkpoint(path if ranks.rank == 0 else None, identity), saved


def identity_of(estimator: Any, x: Any, sample_weight: Tensor | None) -> dict[str, Any]:
    """What a run must have in common with a checkpoint: parameters that change results, and some of the rows."""
    numbers = some_rows(len(x)).to(x.device)
    seen = [x[numbers]]
    if sample_weight is not None:
        is_streamed = isinstance(x, StreamedRows)
        seen.append(x.values_at(sample_weight, numbers) if is_streamed else sample_weight[numbers])
    exact = estimator.deterministic or estimator.group is not None
    state, init = estimator.random_state, estimator.init
    if not isinstance(init, str):
        init = digest([init if isinstance(init, Tensor) else torch.as_tensor(np.asarray(init))])
    return {
        "estimator": type(estimator).__name__,
        "n_clusters": int(estimator.n_clusters),
        "init": init,
        "n_init": str(estimator.n_init),
        "tol": float(estimator.tol),
        "random_state": int(state) if isinstance(state, (int, np.integer)) else None,
        "deterministic": exact,
        "row source": isinstance(x, StreamedRows) and not exact,  # sums of blocks have other bits
        "shape": list(x.shape),
        "dtype": str(x.dtype).removeprefix("torch."),
        "weighted": sample_weight is not None,
        "digest of rows": digest(seen),
    }


def _parse(content: bytes, path: Path, identity: dict[str, Any], device: torch.device) -> Saved:
    tensors, description = parse_checkpoint(content, path)
    if description.get("class") != "KMeansRun":
        raise CheckpointError(f"{path} holds a {description.get('class')}, not a run of k-means")
    check_same_run(description["identity"], identity, path)
    tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    progress = Progress(tensors["before"], tensors["centers"], description["history"], description["is_over"])
    best = description.get("best")
    known = None if best is None else Best(tensors["best_centers"], best["inertia"], best["history"])
    return Saved(description["run"], progress, description["random"], known)
