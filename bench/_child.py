"""First call and peak memory, each in a process of its own: ``python -m bench._child JSON`` prints JSON.

A first call is only honest in a process that has not called yet, with empty caches of compiled code. A second
process with the caches of the first gives the cached start, a third the peak memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from bench._environment import ROOT
from bench._harness import Bench, Call, Provider, Shape, all_benches
from bench._memory import peaks_of, resident_bytes

CACHES = ("FASTDC_CACHE_DIR", "NUMBA_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
LIMIT_S = 900


@dataclass(frozen=True)
class Errand:
    """What a child measures; every field is plain, so that it travels as JSON."""

    op: str
    provider: str
    shape: dict[str, int]
    dtype: str
    device: str
    threads: int
    modes: tuple[str, ...]
    want: str = "first"  # "first": ms of the first call of the last mode; "peak": bytes of every mode


class ChildError(RuntimeError):
    """A child process failed; the message holds the end of what it said."""


def fresh_measurements(errand: Errand) -> dict[str, Any]:
    """``first_call_ms`` and ``cached_start_ms`` of the last mode; on CPUs also ``peak_bytes`` of each mode.

    On GPUs the peak needs no process of its own.
    """
    with tempfile.TemporaryDirectory() as folder:
        first = _send(errand, folder)
        cached = _send(errand, folder)
        figures: dict[str, Any] = {"first_call_ms": first["ms"], "cached_start_ms": cached["ms"]}
        if errand.device == "cpu":
            figures["peak_bytes"] = _send(replace(errand, want="peak"), folder)
    return figures


def _send(errand: Errand, caches: str) -> dict[str, Any]:
    environment = {**os.environ, **{name: os.path.join(caches, name.lower()) for name in CACHES}}
    for name in CACHES:
        os.makedirs(environment[name], exist_ok=True)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "bench._child", json.dumps(asdict(errand))],
            cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ChildError(f"{errand.op}, {errand.provider}: no answer within {LIMIT_S} s") from None
    if done.returncode != 0:
        raise ChildError(f"{errand.op}, {errand.provider}: {done.stderr.strip()[-800:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(text: str) -> None:
    errand = Errand(**json.loads(text))
    bench = all_benches()[errand.op]
    provider = bench.providers[errand.provider]
    torch.set_num_threads(errand.threads)
    _wake(errand.device)
    answer = _first_call(bench, provider, errand) if errand.want == "first" else _peaks(bench, provider, errand)
    print(json.dumps(answer))


def _first_call(bench: Bench, provider: Provider, errand: Errand) -> dict[str, float]:
    """Milliseconds of the first call of a process, after ``make``; machine code is built or loaded in it."""
    call = _call(bench, provider, errand, errand.shape)
    start = time.perf_counter()
    _run(call, errand.modes[-1])
    if errand.device == "cuda":
        torch.cuda.synchronize()
    return {"ms": 1e3 * (time.perf_counter() - start)}


def _peaks(bench: Bench, provider: Provider, errand: Errand) -> dict[str, int]:
    """Bytes at the peak of each mode over inputs, outputs and gradients, machine code loaded."""
    call = _call(bench, provider, errand, errand.shape)
    warm = call if provider.compiles_each_shape else _call(bench, provider, errand, bench.tiny)
    for mode in errand.modes:
        _run(warm, mode)
    del warm
    return peaks_of(call, errand.modes, resident_bytes(errand.device), errand.device)


def _call(bench: Bench, provider: Provider, errand: Errand, shape: Shape) -> Call:
    inputs = bench.inputs(**shape, dtype=getattr(torch, errand.dtype), device=errand.device)
    run = provider.make()
    return Call(bench, run, provider.prepare(inputs) if provider.prepare else inputs)


def _run(call: Call, mode: str) -> None:
    if mode == "forward":
        call.forward()
    else:
        call.both()


def _wake(device: str) -> None:
    """Start torch's threads and BLAS, or the GPU, so that a first call does not pay for them."""
    a = torch.ones(256, 256, device=device)
    (a @ a).sum().item()


if __name__ == "__main__":
    main(sys.argv[1])
