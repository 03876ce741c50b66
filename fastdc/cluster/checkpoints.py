"""A fit of k-means or of a mixture that can be interrupted: its state between two iterations, in a folder.

The state is small: centers or parameters, the history so far, and where the random numbers stand. Labels are not saved,
for they follow in one pass. So it does not matter by how many processes a fit is continued.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from fastdc._runs import check_same_run, digest, read_run, some_rows
from fastdc.cluster.lloyd import Progress, Record, Solution
from fastdc.cluster.streaming import StreamedRows
from fastdc.distributed import Ranks
from fastdc.persistence import CheckpointError, parse_checkpoint, write_checkpoint

FILE = "kmeans.safetensors"
KINDS = {"KMeansRun": "run of k-means", "MixtureRun": "run of a mixture"}
SECONDS = 10.0  # from one checkpoint to the next

Own = TypeVar("Own", bound="RunFile")


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

    def pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """As a file holds it."""
        progress, best = self.progress, self.best
        tensors = {"before": progress.before, "centers": progress.centers}
        description = {"class": "KMeansRun", "run": self.run, "random": self.random}
        description |= {"history": progress.history, "is_over": progress.is_over}
        if best is not None:
            tensors["best_centers"] = best.centers
            description["best"] = {"inertia": best.inertia, "history": best.history}
        return tensors, description


class RunFile:
    """Writes the state of a fit to a file: every 10 seconds, and when its ``with`` block ends, however it does.

    Parameters
    ----------
    path : Path or None
        The file; None writes nothing, as on ranks other than the first.
    identity : dict
        What the checkpoint is of: see :func:`identity_of`.
    """

    def __init__(self, path: Path | None, identity: dict[str, Any]) -> None:
        self.path, self.identity = path, identity
        self._latest: Any = None  # not yet written
        self._written = time.monotonic()

    def remember(self, saved: Any) -> None:
        """The state as it is now, with a method ``pack``; written when it is time."""
        self._latest = saved
        if time.monotonic() - self._written >= SECONDS:
            self._write()

    def __enter__(self: Own) -> Own:
        return self

    def __exit__(self, *_: object) -> None:
        self._write()

    def _write(self) -> None:
        saved, self._latest = self._latest, None
        if saved is None or self.path is None:
            return
        tensors, description = saved.pack()
        write_checkpoint(self.path, tensors, description | {"identity": self.identity})
        self._written = time.monotonic()


class Checkpoint(RunFile):
    """Of k-means."""

    def begin(self, run: int, random: np.random.Generator, best: Solution | None) -> None:
        """A run starts from centers that have been drawn."""
        known = None if best is None else Best(best.centers, best.inertia, best.history)
        self._run, self._random, self._best = run, dict(random.bit_generator.state), known

    def keep(self, progress: Progress) -> None:
        """Remember the progress of the run."""
        self.remember(Saved(self._run, progress, self._random, self._best))


def open_checkpoint(
    folder: Any, identity: dict[str, Any], resume: bool, ranks: Ranks, device: torch.device
) -> tuple[Checkpoint, Saved | None]:
    """A checkpoint of k-means to write to, and with ``resume`` what it holds already.

    Raises as :func:`open_run` does.
    """
    path, found = open_run(folder, FILE, "KMeansRun", identity, resume, ranks)
    checkpoint = Checkpoint(path, identity)
    if found is None:
        return checkpoint, None
    tensors, description = found
    tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    progress = Progress(tensors["before"], tensors["centers"], description["history"], description["is_over"])
    best = description.get("best")
    known = None if best is None else Best(tensors["best_centers"], best["inertia"], best["history"])
    return checkpoint, Saved(description["run"], progress, description["random"], known)


def open_run(
    folder: Any, file: str, kind: str, identity: dict[str, Any], resume: bool, ranks: Ranks
) -> tuple[Path | None, tuple[dict[str, Tensor], dict[str, Any]] | None]:
    """The file that this rank writes to, if it does, and with ``resume`` the content of the one that is there.

    Raises
    ------
    ValueError
        If there is something to resume, but no folder.
    FileExistsError
        If the folder holds a checkpoint and ``resume`` is False.
    CheckpointError
        If it is damaged, of another ``kind``, or of other data or parameters.
    """
    if folder is None:
        if resume:
            raise ValueError("resume=True needs checkpoint=, the folder of the run to go on with")
        return None, None
    path = Path(folder) / file
    content = ranks.from_first(lambda: read_run(path, resume))
    own = path if ranks.rank == 0 else None
    if not content:
        return own, None
    tensors, description = parse_checkpoint(content, path)
    if description.get("class") != kind:
        raise CheckpointError(f"{path} holds a {description.get('class')}, not a {KINDS[kind]}")
    check_same_run(description["identity"], identity, path)
    return own, (tensors, description)


def identity_of(
    estimator: Any, parameters: dict[str, Any], x: Any, sample_weight: Tensor | None = None
) -> dict[str, Any]:
    """What a run must have in common with a checkpoint: parameters that change results, and some of the rows."""
    numbers = some_rows(len(x)).to(x.device)
    seen = [x[numbers]]
    if sample_weight is not None:
        is_streamed = isinstance(x, StreamedRows)
        seen.append(x.values_at(sample_weight, numbers) if is_streamed else sample_weight[numbers])
    exact = estimator.deterministic or estimator.group is not None
    state = estimator.random_state
    return {
        "estimator": type(estimator).__name__,
        **parameters,
        "random_state": int(state) if isinstance(state, (int, np.integer)) else None,
        "deterministic": exact,
        "row source": isinstance(x, StreamedRows) and not exact,  # sums of blocks have other bits
        "shape": list(x.shape),
        "dtype": str(x.dtype).removeprefix("torch."),
        "weighted": sample_weight is not None,
        "digest of rows": digest(seen),
    }


def told(start: Any) -> Any:
    """Where a fit starts, as an identity has it: of an array a digest."""
    if start is None or isinstance(start, str):
        return start
    return digest([start if isinstance(start, Tensor) else torch.as_tensor(np.asarray(start))])
