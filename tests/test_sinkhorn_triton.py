"""The GPU kernels of the Sinkhorn room: run by Triton's interpreter, and on a GPU.

The tests of values stand in ``sinkhorn_triton_cases.py``, which runs in a process of its own: kernels take up the
interpreter when they are imported.
"""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


from fastdc.kernels.sinkhorn.triton_kernel import launch

CASES = str(Path(__file__).with_name("sinkhorn_triton_cases.py"))
PYTEST = ("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", CASES)


def test_interpreted(interpreted):
    assert "passed" in interpreted(PYTEST)


@pytest.mark.gpu
def test_on_the_gpu():
    done = subprocess.run([sys.executable, *PYTEST], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_launch_choices():
    assert [launch(k) for k in (1, 20, 100_000)] == [(128, 16), (64, 32), (16, 128)]
