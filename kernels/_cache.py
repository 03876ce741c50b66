"""Where machine code of the CPU kernels is kept between processes, and what happens where it cannot be.

Numba notices an edited file but not an edited helper in another file. The cache folder is therefore keyed by
the library version and a hash of all kernel sources.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import FunctionCache, NullCache

from fastdc._version import __version__

UNREADABLE = (OSError, EOFError, pickle.UnpicklingError, ValueError, TypeError, LookupError, AttributeError)


def make_cache(function: Callable[..., Any]) -> Any:
    """The cache of one kernel, in our folder; one that keeps nothing where there is no folder."""
    folder = _cache_folder()
    if folder is None:
        return NullCache()
    config: Any = numba.config
    before = config.CACHE_DIR
    try:
        config.CACHE_DIR = str(folder)
        return ForgivingCache(function)
    finally:
        config.CACHE_DIR = before


class ForgivingCache(FunctionCache):
    """Numba's cache, which neither a damaged file nor a full disk stops: the kernel is compiled again."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except UNREADABLE as error:
            _say_once(f"a compiled kernel in {self.cache_path} is damaged ({error}) and is made anew")
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            try:
                super().save_overload(sig, data)
            except UNREADABLE:  # the index is damaged: begin a new one
                self.flush()
                super().save_overload(sig, data)
        except OSError as error:
            _say_once(f"compiled kernels cannot be kept in {self.cache_path} ({error.strerror})")


_said = False


def _say_once(message: str) -> None:
    global _said
    if not _said:
        _said = True
        warnings.warn(f"fastdc: {message}", RuntimeWarning, stacklevel=2)


def cache_root() -> Path:
    """The user's cache folder of fastdc: $FASTDC_CACHE_DIR, or the platform's usual place."""
    chosen = os.environ.get("FASTDC_CACHE_DIR")
    if chosen:
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", "~")).expanduser() / "fastdc" / "cache"
    if sys.platform == "darwin":
        return Path("~/Library/Caches/fastdc").expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fastdc"


_folder: Path | None = None
_folder_decided = False


def _cache_folder() -> Path | None:
    """The folder for this version's machine code, or None (said once) where none can be written."""
    global _folder, _folder_decided
    if _folder_decided:
        return _folder
    _folder_decided = True
    folder = cache_root() / f"numba-{__version__}-{_source_hash()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        warnings.warn(
            f"fastdc cannot write its compilation cache in {folder} ({error.strerror}); kernels compile anew in "
            "each process. Set FASTDC_CACHE_DIR to a writable folder.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    _folder = folder
    return folder


def _source_hash() -> str:
    digest = hashlib.sha256(numba.__version__.encode())
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]
