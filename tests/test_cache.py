"""T48: the compilation cache under faults. A kernel is compiled anew, and the trouble is said once."""

import os
import subprocess
import sys

import pytest

KERNEL = """
import warnings
from fastdc.kernels._numba import jit

@jit
def double(x):
    return 2 * x

with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    assert double(21) == 42 and double(0.5) == 1.0
print(sum(double.stats.cache_hits.values()), *[str(w.message) for w in said], sep="\\n")
"""


@pytest.fixture
def run_kernel(tmp_path):
    """Run the kernel in a new process: (how many signatures came from the cache, the warnings)."""
    script = tmp_path / "kernel.py"
    script.write_text(KERNEL)

    def run(cache=tmp_path / "cache"):
        done = subprocess.run(
            [sys.executable, str(script)],
            env=os.environ | {"FASTDC_CACHE_DIR": str(cache)},
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        hits, *said = done.stdout.splitlines()
        return int(hits), said + [line for line in done.stderr.splitlines() if "RuntimeWarning" in line]

    return run


def test_a_second_process_finds_the_machine_code(run_kernel):
    assert run_kernel() == (0, [])
    assert run_kernel() == (2, [])


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [("nbi", lambda data: data[:50]), ("nbc", lambda data: b"\xff" * len(data)), ("nbc", lambda data: b"")],
    ids=["cut index", "overwritten code", "empty code"],
)
def test_T48_a_damaged_file_is_replaced(run_kernel, tmp_path, suffix, damage):
    run_kernel()
    files = list((tmp_path / "cache").rglob(f"*.{suffix}"))
    assert files
    for file in files:
        file.write_bytes(damage(file.read_bytes()))
    hits, said = run_kernel()
    assert hits == 0
    assert len(said) == 1
    assert "is damaged" in said[0]
    assert run_kernel() == (2, [])


def test_T48_a_folder_that_cannot_be_written(run_kernel, tmp_path):
    (tmp_path / "file").write_text("no folder")
    hits, said = run_kernel(tmp_path / "file")
    assert hits == 0
    assert len(said) == 1
    assert "cannot write its compilation cache" in said[0]
    assert "FASTDC_CACHE_DIR" in said[0]


def test_T48_two_processes_compile_at_once(tmp_path):
    script = tmp_path / "kernel.py"
    script.write_text(KERNEL)
    environment = os.environ | {"FASTDC_CACHE_DIR": str(tmp_path / "cache")}
    both = [subprocess.Popen([sys.executable, str(script)], env=environment) for _ in range(2)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
