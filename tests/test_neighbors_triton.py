"""The GPU kernels of the neighbors room: run by Triton's interpreter, and on a GPU.

The tests of values stand in ``neighbors_triton_cases.py``, which runs in a process of its own: kernels take up
the interpreter when they are imported.
"""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from fastdc.kernels.neighbors.triton_kernel import Launch, launch, launch_within

CASES = str(Path(__file__).with_name("neighbors_triton_cases.py"))
PYTEST = ("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", CASES)


def test_interpreted(interpreted):
    assert "passed" in interpreted(PYTEST)


@pytest.mark.gpu
def test_on_the_gpu():
    done = subprocess.run([sys.executable, *PYTEST], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_launch_choices():
    assert launch(4, "tf32x3") == Launch(64, 32, 16, 4)
    assert launch(4, "ieee") == Launch(64, 16, 16, 4)
    assert launch(8, "ieee") == Launch(16, 16, 16, 4)
    assert (launch_within(4), launch_within(8)) == (Launch(32, 32, 16, 4), Launch(16, 32, 16, 4))
