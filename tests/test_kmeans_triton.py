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


def test_interpreted(interpreted):
    assert "passed" in interpreted(PYTEST)


@pytest.mark.gpu
def test_on_the_gpu():
    done = subprocess.run([sys.executable, *PYTEST], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
