"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np


def save_array(path: str | os.PathLike[str], array: np.ndarray) -> None:
    """Write an array atomically, as text where the name ends in ``.csv`` or ``.txt``, else as ``.npy``."""
    with atomic_write(path) as file:
        if Path(path).suffix.lower() in (".csv", ".txt"):
            whole = array.dtype.kind in "biu"
            np.savetxt(file, array, fmt="%d" if whole else "%.9g", delimiter=",")
        else:
            np.save(file, array)


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary file that appears under its name only when the block ends without an error.

    A symbolic link is followed. A path that exists and is no regular file (a pipe, ``/dev/null``) is written
    in place, since a rename would replace the device.
    """
    target = Path(path).resolve()
    if target.exists() and not target.is_file():
        with open(target, "wb") as file:
            yield file
        return
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    if hasattr(os, "O_DIRECTORY"):  # the rename itself must reach the disk
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
