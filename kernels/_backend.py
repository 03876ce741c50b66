"""Which implementation of an op runs: the one dispatch file.

Every op has up to three implementations: ``reference`` (plain torch), ``numba`` (CPU) and ``triton`` (GPU).
The order of precedence is the ``backend=`` argument, ``with use_backend(...)``, the environment variable
``FASTDC_BACKEND``, and last the automatic choice by device. A forced backend that cannot run raises
:class:`BackendError`; it never falls back.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch

BACKENDS = ("reference", "numba", "triton")
ENVIRONMENT_VARIABLE = "FASTDC_BACKEND"
logger = logging.getLogger("fastdc")


class BackendError(RuntimeError):
    """A backend was asked for that cannot run here. The message says what is missing and what to do."""


@dataclass(frozen=True)
class Hardware:
    """What this process can import and run. Tests inject their own."""

    has_numba: bool
    has_triton: bool
    interprets_triton: bool = False  # TRITON_INTERPRET=1: Triton kernels run on the CPU, slowly, for tests

    @staticmethod
    def detect() -> Hardware:
        return Hardware(
            has_numba=importlib.util.find_spec("numba") is not None,
            has_triton=importlib.util.find_spec("triton") is not None,
            interprets_triton=os.environ.get("TRITON_INTERPRET", "0") == "1",
        )


class Choice(NamedTuple):
    """One line of :func:`explain`."""

    backend: str
    chosen: bool
    reason: str


_hardware = Hardware.detect()
_forced: str | None = None  # set by use_backend; a plain global, so that torch.compile guards on it
_already_said: set[str] = set()


@contextmanager
def use_backend(backend: str | None) -> Iterator[None]:
    """Force one backend for every op inside the block, in this process. ``None`` means automatic.

    >>> import fastdc
    >>> with fastdc.use_backend("reference"):
    ...     pass
    """
    global _forced
    if backend is not None:
        _check_name(backend, "use_backend()")
    before, _forced = _forced, backend
    try:
        yield
    finally:
        _forced = before


def choose(op: str, x: torch.Tensor, requested: str | None = None, *, hardware: Hardware | None = None) -> str:
    """Name of the backend that runs ``op`` on tensors like ``x``; the one decision that every op makes.

    Raises
    ------
    ValueError
        If the name is not a backend.
    BackendError
        If a backend was forced that cannot run on this tensor or in this process.
    """
    hardware = _hardware if hardware is None else hardware
    forced, origin = _forced_backend(requested)
    if forced is not None:
        _check_name(forced, origin)
        obstacle = _obstacle(forced, x.device.type, hardware)
        if obstacle:
            raise BackendError(f"{op}: backend {forced!r}, forced by {origin}, cannot run: {obstacle}")
        return forced
    chosen, wanted = _automatic(x.device.type, hardware)
    if chosen != wanted and not torch.compiler.is_compiling() and op not in _already_said:
        _already_said.add(op)
        warnings.warn(
            f"{op} runs its slow reference on {x.device}: {_obstacle(wanted, x.device.type, hardware)}",
            RuntimeWarning,
            stacklevel=3,
        )
    return chosen


def explain(
    op: str, x: torch.Tensor, requested: str | None = None, *, hardware: Hardware | None = None
) -> list[Choice]:
    """Each backend of ``op`` for tensors like ``x``, whether it is chosen, and why.

    The answer comes from the functions that the call itself uses.

    >>> import torch, fastdc
    >>> [c.backend for c in fastdc.explain("dec_loss", torch.zeros(2, 2)) if c.chosen]
    ['numba']
    """
    from fastdc.kernels import OPS

    if op not in OPS:
        raise ValueError(f"{op!r} is no op of fastdc; it knows {', '.join(sorted(OPS))}")
    hardware = _hardware if hardware is None else hardware
    forced, origin = _forced_backend(requested)
    if forced is not None:
        _check_name(forced, origin)
    automatic, _ = _automatic(x.device.type, hardware)
    rows = []
    for name in BACKENDS:
        obstacle = _obstacle(name, x.device.type, hardware)
        if forced is not None:
            chosen = name == forced and not obstacle
            reason = obstacle or (f"forced by {origin}" if name == forced else f"{origin} forces {forced!r}")
        else:
            chosen = name == automatic
            reason = obstacle or (f"fastest for {x.device.type} tensors" if chosen else f"{automatic} is faster here")
        rows.append(Choice(name, chosen, reason))
    return rows


def _forced_backend(requested: str | None) -> tuple[str | None, str]:
    """(name, where it was asked for), by precedence; (None, "") leaves the choice automatic."""
    if requested is not None:
        return requested, "the argument backend="
    if _forced is not None:
        return _forced, "use_backend()"
    from_environment = os.environ.get(ENVIRONMENT_VARIABLE)
    if from_environment:
        return from_environment, f"the environment variable {ENVIRONMENT_VARIABLE}"
    return None, ""


def _automatic(device_type: str, hardware: Hardware) -> tuple[str, str]:
    """(the backend that runs, the backend that should run were it importable)."""
    if device_type == "cpu":
        return ("numba" if hardware.has_numba else "reference"), "numba"
    if device_type == "cuda":
        return ("triton" if hardware.has_triton else "reference"), "triton"
    return "reference", "reference"


def _obstacle(backend: str, device_type: str, hardware: Hardware) -> str:
    """Why ``backend`` cannot run on tensors of this device; empty if it can."""
    if backend == "numba":
        if not hardware.has_numba:
            return "numba does not import; install it with `pip install numba`"
        if device_type != "cpu":
            return f"numba kernels need CPU tensors, x is on {device_type}; move it with x.cpu() or use 'triton'"
    if backend == "triton":
        if not hardware.has_triton:
            return "triton does not import; install it with `pip install triton` (Linux)"
        if device_type == "cpu" and not hardware.interprets_triton:
            return "triton kernels need GPU tensors, x is on cpu; move it with x.cuda() or use 'numba'"
        if device_type not in ("cuda", "cpu"):
            return f"triton kernels need CUDA or ROCm tensors, x is on {device_type}"
    return ""


def _check_name(backend: str, origin: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {BACKENDS} or None, {origin} asks for {backend!r}")
