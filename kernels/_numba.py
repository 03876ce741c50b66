"""``jit``: how every Numba kernel here is compiled.

Kernels are serial and release the GIL; ``_parallel.py`` runs them on threads. So there is no Numba threading
layer that could abort after a fork or under concurrent calls, and a kernel compiles in about half the time
that ``parallel=True`` takes.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding
import numba
from numba.core.ccallback import CFunc
from numba.core.sigutils import normalize_signature

from fastdc.kernels._cache import make_cache

REASSOCIATE = frozenset({"reassoc", "contract", "nsz", "arcp"})  # NaN and inf keep their meaning


def jit(function: Any = None, *, reassociate: bool = False, inline: bool = False, inner: bool = False) -> Any:
    """Compile a kernel: nopython, GIL released, division as numpy, machine code cached.

    Parameters
    ----------
    reassociate : bool
        Allow sums to be reordered, so that they vectorise. NaN and infinity keep their meaning. A loop that
        sums up must not store into an array too: LLVM would check whether the arrays lie near each other and
        add in another order where they do, so that results would depend on where memory was to be had.
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
    dispatcher._cache = make_cache(function)
    return dispatcher


def export(symbol: str, signature: Any, function: Any) -> None:
    """Compile a function of scalars and pointers now, and let kernels call it by the symbol."""
    compiled: Any = CFunc(function, normalize_signature(signature), locals={}, options={"error_model": "numpy"})
    compiled._cache = make_cache(function)
    compiled.compile()
    llvmlite.binding.add_symbol(symbol, compiled.address)
    _exported[symbol] = compiled  # keeps the machine code alive


_exported: dict[str, Any] = {}
