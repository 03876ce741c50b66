"""The GPU kernels of the kmeans room: run by Triton's interpreter, and on a GPU."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

CASES = str(Path(__file__).with_name("kmeans_triton_cases.py"))
PYTEST = ("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", CASES)


def test_launch_is_a_function_of_numbers():
    from fastdc.kernels.kmeans.triton_kernel import launch

    assert launch(64, 4, "tf32x3", 232448) == launch(64, 4, "tf32x3", 232448)
    assert launch(2, 4, "tf32x3", 232448).block_d == 16  # the least that a product takes
    assert launch(64, 4, "tf32x3", 166912).block_d == 16
    assert launch(64, 4, "tf32", 65536).num_stages == 1


def test_parts_of_centers_and_points():
    from fastdc.kernels._triton import Chip, other_splits

    chip = Chip(n_processors=100, capability=90)
    assert other_splits(200, 10**6, 256, 64, chip) == (1, 10**6)  # rows alone are two programs a multiprocessor
    assert other_splits(199, 10**6, 256, 64, chip)[0] == 3
    assert other_splits(1, 2000, 256, 64, chip) == (7, 320)
    assert other_splits(1, 500, 256, 64, chip) == (1, 512)
    assert other_splits(0, 0, 256, 64, chip) == (1, 64)
    for n_programs in (1, 3, 50):
        n_parts, others = other_splits(n_programs, 12345, 128, 32, chip)
        assert others % 32 == 0
        assert (n_parts - 1) * others < 12345 <= n_parts * others


def test_interpreted(interpreted):
    assert "passed" in interpreted(PYTEST)


@pytest.mark.gpu
def test_on_the_gpu():
    done = subprocess.run([sys.executable, *PYTEST], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
