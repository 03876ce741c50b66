"""The GPU kernels of the graph room: run by Triton's interpreter, and on a GPU.

The tests of values stand in ``graph_triton_cases.py``, which runs in a process of its own: kernels take up the
interpreter when they are imported.
"""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from fastdc.kernels.graph.triton_kernel import consistency_launch, launch

CASES = str(Path(__file__).with_name("graph_triton_cases.py"))
PYTEST = ("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", CASES)


def test_interpreted(interpreted):
    assert "passed" in interpreted(PYTEST)


@pytest.mark.gpu
def test_on_the_gpu():
    done = subprocess.run([sys.executable, *PYTEST], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_tiles():
    assert launch(1) == {"BLOCK_E": 512, "BLOCK_D": 1, "num_warps": 1}
    assert launch(10) == {"BLOCK_E": 32, "BLOCK_D": 16, "num_warps": 1}
    assert consistency_launch(100, 4) == {"BLOCK_N": 4, "BLOCK_K": 128, "num_warps": 4}
    assert launch(5000) == {"BLOCK_E": 8, "BLOCK_D": 64, "num_warps": 1}
