"""All providers of an op at one shape: checked, timed in turns, and measured in fresh processes."""

from __future__ import annotations

import datetime
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bench._child import ChildError, Errand, fresh_measurements
from bench._environment import Ceiling, available_cores, calibrate, code_state, device_name, versions
from bench._harness import Bench, Call, Inputs, Provider, Rows, Shape, measure_errors
from bench._memory import free_bytes, peaks_of, resident_bytes
from bench._rows import Row
from bench._timing import Budget, interleave

# What a provider that cannot do a shape may raise, beside an import error.
FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, AssertionError, IndexError, KeyError)


@dataclass(frozen=True)
class Settings:
    """What the command line decides."""

    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1
    modes: tuple[str, ...] = ("forward", "backward", "both")
    providers: tuple[str, ...] | None = None
    budget: Budget = field(default_factory=Budget)
    fresh: bool = True  # first call, cached start and (CPU) peak memory, in processes of their own
    memory_fraction: float = 0.6
    note: str = ""


@dataclass
class Entry:
    """One provider on its way through the checks."""

    status: str = "ok"
    reason: str = ""
    call: Call | None = None
    prepare_ms: float | None = None
    errors: dict[str, float] | None = None
    peaks: dict[str, int] | None = None


def measure(bench: Bench, shape: Shape, settings: Settings) -> list[Row]:
    """Rows of every provider and mode at one shape.

    A provider whose results are wrong, that does not import, does not fit in memory or raises has rows that
    say so and is never timed.
    """
    torch.set_num_threads(settings.threads)
    if any(provider.compiles_each_shape for provider in bench.providers.values()):
        torch.compiler.reset()  # each shape and thread count compiles for itself: its best setting
    dtype = getattr(torch, settings.dtype)
    ceiling = calibrate(settings.device, dtype, settings.threads)
    modes = tuple(mode for mode in bench.modes if mode in settings.modes)
    if not modes:
        raise ValueError(f"{bench.op} has the modes {bench.modes}, asked for {settings.modes}")
    inputs = bench.inputs(**shape, dtype=dtype, device=settings.device)
    entries = _check_all(bench, shape, inputs, modes, settings)
    calls = {name: entry.call for name, entry in entries.items() if entry.call is not None}
    samples = {mode: interleave(calls, mode, settings.device, settings.budget) for mode in modes}
    fresh = {name: _fresh(bench, name, shape, modes, settings) for name in calls} if settings.fresh else {}
    common = _common(settings)
    rows = []
    for mode in modes:
        least_ms = ceiling.least_ms(bench.cost(**shape, itemsize=dtype.itemsize, mode=mode))
        for name, entry in entries.items():
            figures = _figures(samples[mode].get(name, []), ceiling, least_ms)
            figures |= _fresh_figures(fresh.get(name, {}), entry, mode, mode == modes[-1])
            rows.append(Row(bench.op, dict(shape), name, mode, **common, **_verdict(entry), **figures))
    return rows


def _check_all(
    bench: Bench, shape: Shape, inputs: Inputs, modes: Sequence[str], settings: Settings
) -> dict[str, Entry]:
    truth = bench.truth(inputs, any(mode != "forward" for mode in modes))
    if not truth:
        raise ValueError(f"{bench.op}: truth() knows no result, so no provider could be checked")
    entries = {}
    for name in settings.providers or tuple(bench.providers):
        provider = bench.providers[name]
        if settings.device not in provider.devices:
            if settings.providers:
                entries[name] = Entry("missing", f"does not run on {settings.device}")
            continue
        _say(f"{bench.op} {dict(shape)} {name}: check")
        entry = entries[name] = _prepare(bench, provider, shape, inputs, settings)
        if entry.call is None:
            continue
        base = resident_bytes(settings.device)
        try:
            entry.errors = _errors(bench, entry.call, truth, inputs, modes)
            if settings.device == "cuda":
                entry.peaks = peaks_of(entry.call, modes, base, settings.device)
        except (ImportError, *FAILURES) as error:
            entries[name] = Entry(_status_of(error), _brief(error))
            continue
        tolerance = provider.tolerance or bench.tolerances[getattr(torch, settings.dtype)]
        worst = max(entry.errors, key=entry.errors.__getitem__)
        if not entry.errors[worst] <= tolerance:
            entry.status, entry.call = "wrong", None
            entry.reason = f"{worst} is off by {entry.errors[worst]:.2g}, allowed is {tolerance:.2g}"
    return entries


def _prepare(bench: Bench, provider: Provider, shape: Shape, inputs: Inputs, settings: Settings) -> Entry:
    """Import and convert, unless the provider says that it needs more memory than it may take."""
    needed = provider.extra_bytes(**shape, itemsize=getattr(torch, settings.dtype).itemsize)
    allowed = settings.memory_fraction * free_bytes(settings.device)
    if needed > allowed:
        return Entry("out_of_memory", f"needs {needed / 1e9:.1f} GB, {allowed / 1e9:.1f} GB may be used")
    try:
        run = provider.make()
    except (ImportError, *FAILURES) as error:
        return Entry(_status_of(error), _brief(error))
    if provider.prepare is None:
        return Entry(call=Call(bench, run, inputs))
    start = time.perf_counter()
    own_inputs = provider.prepare(inputs)
    prepare_ms = 1e3 * (time.perf_counter() - start)
    return Entry(call=Call(bench, run, own_inputs), prepare_ms=prepare_ms)


def _errors(
    bench: Bench, call: Call, truth: Mapping[str, Tensor | Rows], inputs: Inputs, modes: Sequence[str]
) -> dict[str, float]:
    """The largest error of each result over the calls to be timed: with gradients, without, or both."""
    errors: dict[str, float] = {}
    for gradients in sorted({mode != "forward" for mode in modes}):
        known = {name: value for name, value in truth.items() if gradients or not name.startswith("grad_")}
        for name, error in measure_errors(bench, call.results(gradients), known, inputs).items():
            errors[name] = max(error, errors.get(name, 0.0))
    return errors


def _verdict(entry: Entry) -> dict[str, Any]:
    """The part of a row that the checks decide; JSON has no infinity, such an error becomes None."""
    errors = {name: value if math.isfinite(value) else None for name, value in (entry.errors or {}).items()}
    worst = max(entry.errors.values()) if entry.errors else math.inf
    return {
        "status": entry.status,
        "reason": entry.reason,
        "prepare_ms": entry.prepare_ms,
        "errors": errors or None,
        "max_error": worst if math.isfinite(worst) else None,
    }


def _figures(samples: list[float], ceiling: Ceiling, least_ms: float) -> dict[str, Any]:
    if not samples:
        return {}
    median = statistics.median(samples)
    cuts = statistics.quantiles(samples, n=5, method="inclusive") if len(samples) > 1 else [median] * 4
    return {
        "median_ms": median,
        "q20_ms": cuts[0],
        "q80_ms": cuts[-1],
        "repeats": len(samples),
        "percent_of_roofline": 100 * least_ms / median,
        "gemm_gflops": ceiling.gemm_gflops,
        "copy_gbs": ceiling.copy_gbs,
    }


def _fresh(bench: Bench, name: str, shape: Shape, modes: tuple[str, ...], settings: Settings) -> dict[str, Any]:
    _say(f"{bench.op} {dict(shape)} {name}: first call and memory")
    errand = Errand(bench.op, name, dict(shape), settings.dtype, settings.device, settings.threads, modes)
    try:
        return fresh_measurements(errand)
    except ChildError as error:
        _say(str(error))
        return {}


def _fresh_figures(fresh: dict[str, Any], entry: Entry, mode: str, is_fullest: bool) -> dict[str, Any]:
    """Peak memory of the mode, and first calls in the row of the fullest mode, as far as measured."""
    peaks = fresh.get("peak_bytes") or entry.peaks or {}
    figures = {"peak_bytes": peaks.get(mode)}
    if is_fullest:
        figures |= {name: fresh.get(name) for name in ("first_call_ms", "cached_start_ms")}
    return figures


def _common(settings: Settings) -> dict[str, Any]:
    """What all rows of a run share."""
    return {
        "device": settings.device,
        "device_name": device_name(settings.device),
        "cores": available_cores(),
        "threads": settings.threads,
        "dtype": settings.dtype,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(settings.device),
        "note": settings.note,
        **code_state(),
    }


def _status_of(error: BaseException) -> str:
    if isinstance(error, ImportError):
        return "missing"
    return "out_of_memory" if isinstance(error, torch.OutOfMemoryError) else "failed"


def _brief(error: BaseException) -> str:
    """The first line of an error, without paths."""
    lines = str(error).strip().splitlines() or [""]
    text = " ".join(word for word in lines[0].split() if "/" not in word)
    return f"{type(error).__name__}: {text}"[:200]


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
