"""``jit``: how every Numba kernel here is compiled, and where its machine code is cached.

Kernels are serial and release the GIL; ``_parallel.py`` runs them on threads. So there is no Numba threading
layer that could abort after a fork or under concurrent calls, and a kernel compiles in about half the time
that ``parallel=True`` takes.

Numba notices an edited file but not an edited helper in another file. The cache folder is therefore keyed by
the library version and a hash of all kernel sources.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba

from fastdc._version import __version__

REASSOCIATE = frozenset({"reassoc", "contract", "nsz", "arcp"})  # NaN and inf keep their meaning


def jit(function: Any = None, *, reassociate: bool = False, inline: bool = False, inner: bool = False) -> Any:
    """Compile a kernel: nopython, GIL released, division as numpy, machine code cached.

    Parameters
    ----------
    reassociate : bool
        Allow sums to be reordered, so that they vectorise. NaN and infinity keep their meaning.
    inline : bool
        Ask LLVM to inline the function where it is called, for small helpers in hot loops. Implies inner.
    inner : bool
        Only other kernels call it: no way in from Python is compiled, and nothing is cached but its callers.
    """
    if function is None:
        return lambda f: jit(f, reassociate=reassociate, inline=inline, inner=inner)
    inner = inner or inline
    njit: Any = numba.njit  # its annotations lack the wrappers' options
    dispatcher = njit(
        nogil=True,
        error_model="numpy",
        fastmath=set(REASSOCIATE) if reassociate else False,
        forceinline=inline,
        no_cpython_wrapper=inner,
        no_cfunc_wrapper=True,
    )(function)
    if inner:
        return dispatcher
    with _cache_in_folder() as cached:
        if cached:
            dispatcher.enable_caching()
    return dispatcher


def export(symbol: str, signature: Any, function: Any) -> None:
    """Compile a function of scalars and pointers now, and let kernels call it by the symbol."""
    with _cache_in_folder() as cached:
        compiled = numba.cfunc(signature, cache=cached, error_model="numpy")(function)
    llvmlite.binding.add_symbol(symbol, compiled.address)
    _exported[symbol] = compiled  # keeps the machine code alive


@contextmanager
def _cache_in_folder() -> Iterator[bool]:
    """Numba's cache folder is ours while the block runs; False where there is none."""
    folder = _cache_folder()
    config: Any = numba.config
    before = config.CACHE_DIR
    try:
        if folder is not None:
            config.CACHE_DIR = str(folder)
        yield folder is not None
    finally:
        config.CACHE_DIR = before


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


_exported: dict[str, Any] = {}
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
