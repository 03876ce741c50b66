"""What goes wrong with files, in one form: the error names the file and what would repair it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def require(package: str, path: Path) -> None:
    """Say how to install the library that reads a file, where it is missing."""
    if importlib.util.find_spec(package) is None:
        raise ImportError(f'{path}: reading it needs {package}; install it with `pip install "fastdc[data]"`')


@contextmanager
def faults_of(path: Path | str) -> Iterator[None]:
    """Errors of the libraries that read files become ValueErrors that name the file."""
    try:
        yield
    except (ValueError, TypeError, OSError, EOFError, LookupError, RuntimeError, AttributeError) as error:
        text = one_line(error)
        if isinstance(error, ValueError) and text.startswith(f"{path}: "):
            raise
        raise ValueError(f"{path}: {text}") from error


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
