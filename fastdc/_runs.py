"""Folders of runs that can be resumed: what a checkpoint is of, and whether to go on from it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdc.persistence import CheckpointError

LOOKED_AT = 1024  # rows by which data are known again


def some_rows(n_samples: int) -> Tensor:
    """Numbers of rows, spread evenly, by which a data set is known again."""
    return torch.from_numpy(np.linspace(0, n_samples - 1, min(n_samples, LOOKED_AT)).astype(np.int64))


def digest(tensors: Iterable[Tensor]) -> str:
    """SHA-256 of the bytes of tensors."""
    seen = hashlib.sha256()
    for tensor in tensors:
        seen.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return seen.hexdigest()


def read_run(path: Path, resume: bool) -> bytes:
    """The checkpoint at ``path``, empty if there is none; removes what interrupted writes have left beside it.

    Raises
    ------
    FileExistsError
        If there is one and ``resume`` is False.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for rest in path.parent.glob(f".{path.name}.*.part"):
        rest.unlink(missing_ok=True)
    if not path.exists():
        return b""
    if not resume:
        raise FileExistsError(
            f"{path} is the checkpoint of a run; go on with it (resume=True, --resume), or remove it to begin anew"
        )
    return path.read_bytes()


def check_same_run(theirs: dict[str, Any], ours: dict[str, Any], path: Path) -> None:
    """Raise CheckpointError where the checkpoint is of other data or parameters."""
    for name, value in ours.items():
        if theirs.get(name) != value:
            raise CheckpointError(
                f"{path} is of another run: its {name} is {theirs.get(name)}, here it is {value}; resume with the same "
                "data and parameters, or name another folder"
            )
