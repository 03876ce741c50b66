"""What a row says of the machine and the code: names, versions, and what the machine can do at most."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
import torch

from bench._harness import Cost

ROOT = Path(__file__).resolve().parent.parent
_GEMM_SIDE = {"cpu": 1536, "cuda": 8192}
_COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 30}


class Ceiling(NamedTuple):
    """What this machine reaches: a square matrix product or one of cache-sized tiles, and a copy (read and write)."""

    gemm_gflops: float
    copy_gbs: float

    def least_ms(self, cost: Cost) -> float:
        """The time below which an op of this cost cannot come: products and traffic, perfectly overlapped."""
        return max(cost.flops / self.gemm_gflops, cost.bytes_moved / self.copy_gbs) * 1e-6


@functools.lru_cache
def calibrate(device: str, dtype: torch.dtype, threads: int) -> Ceiling:
    """Measure the ceiling with ``threads`` threads (set by the caller; it is here for the cache's sake)."""
    assert device == "cuda" or torch.get_num_threads() == threads, "set torch's threads before calibrating"
    side = _GEMM_SIDE[device]
    a = torch.rand(side, side, dtype=torch.float32, device=device).to(dtype)
    product = torch.empty_like(a)
    source = torch.zeros(_COPY_BYTES[device], dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    gemm_s = _best_seconds(lambda: torch.mm(a, a, out=product), device)
    copy_s = _best_seconds(lambda: target.copy_(source), device)
    gemm_gflops = 2e-9 * side**3 / gemm_s
    if device == "cpu" and dtype in (torch.float32, torch.float64):  # torch's library may suit the processor less
        gemm_gflops = max(gemm_gflops, _tile_gflops(dtype, threads))
    return Ceiling(gemm_gflops, 2e-9 * source.numel() / copy_s)


def _tile_gflops(dtype: torch.dtype, threads: int) -> float:
    """Of the products beneath the CPU kernels, each thread on tiles that stay in its cache."""
    from fastdc.kernels import _simd
    from fastdc.kernels._parallel import run_blocks

    tile, times = 192, 200
    scratch = [np.full((3, tile, tile), 0.5, str(dtype).removeprefix("torch.")) for _ in range(threads)]
    _simd.prepare(scratch[0].dtype)
    product = _simd.gemm
    njit: Any = numba.njit

    @njit(nogil=True)
    def multiply(a, b, out):
        for _ in range(times):
            product(a, b, out, False)

    def run() -> None:
        run_blocks(threads, 1, lambda worker, start, stop: multiply(*scratch[worker]))

    multiply(*scratch[0])
    return 2e-9 * threads * times * tile**3 / _best_seconds(run, "cpu")


def _best_seconds(function: Callable[[], Any], device: str, repeats: int = 7) -> float:
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    best = float("inf")
    for _ in range(repeats):
        synchronize()
        start = time.perf_counter()
        function()
        synchronize()
        best = min(best, time.perf_counter() - start)
    return best


def device_name(device: str) -> str:
    """The GPU's name, or the CPU's model."""
    if device == "cuda":
        return torch.cuda.get_device_name(0)
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        match = None
    return match[1].strip() if match else (platform.processor() or platform.machine())


def cpu_stamp(threads: int) -> dict[str, Any]:
    """What every row of a measured estimator says of when, where and by which code it was measured."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device_name": device_name("cpu"),
        "cores": available_cores(),
        "threads": threads,
        "versions": versions("cpu"),
        **code_state(),
    }


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def versions(device: str) -> dict[str, str | None]:
    """Versions of what computes; the GPU driver too."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    found |= {name: _version(name) for name in ("torch", "triton", "numba", "numpy")}
    if device == "cuda":
        found["cuda"] = torch.version.cuda or torch.version.hip
        query = ["--query-gpu=driver_version", "--format=csv,noheader"]
        found["driver"] = _output_of("nvidia-smi", *query).split("\n")[0] or None
    return found


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def code_state() -> dict[str, Any]:
    """The commit of the checkout and whether files differ from it; None outside of one."""
    commit = _output_of("git", "-C", str(ROOT), "rev-parse", "HEAD")
    changes = _output_of("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit or None, "dirty": bool(changes) if commit else None}


def _output_of(program: str, *arguments: str) -> str:
    """What a program prints; empty where it is absent or fails."""
    path = shutil.which(program)
    if path is None:
        return ""
    done = subprocess.run([path, *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
