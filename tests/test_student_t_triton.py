"""The GPU kernels of the Student t room: run by Triton's interpreter, and on a GPU.

The tests of values stand in ``student_t_triton_cases.py``, which runs in a process of its own: kernels take up the
interpreter when they are imported.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from fastdc.kernels._triton import PARTIAL_BYTES, Chip, launch, product_precision, row_splits
from fastdc.kernels.student_t.triton_kernel import launch_beside

CASES = str(Path(__file__).with_name("student_t_triton_cases.py"))
PYTEST = ("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", CASES)


def test_interpreted(interpreted):
    assert "passed" in interpreted(PYTEST)


@pytest.mark.gpu
def test_on_the_gpu():
    done = subprocess.run([sys.executable, *PYTEST], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_launch_choices():
    hopper = Chip(132, 90)
    assert product_precision("tf32x3", 16, torch.float32) == "ieee"
    assert product_precision("tf32x3", 17, torch.float32) == "tf32x3"
    assert product_precision("tf32x3", 64, torch.float64) == "ieee"
    assert launch(10, 64, "tf32x3", 4, hopper).block_k == 16
    aligned, light, ragged = (
        launch(100, d, "tf32x3", 4, hopper, light=light) for d, light in ((64, False), (64, True), (40, False))
    )
    assert (aligned[:4], light[:4], ragged[:4]) == ((64, 32, 16, 4), (128, 64, 16, 8), (128, 32, 16, 8))
    assert launch_beside(ragged, "tf32x3").block_n == 64
    assert launch_beside(aligned, "tf32x3") == aligned
    by_differences = launch(100, 40, "ieee", 4, hopper)
    assert launch_beside(by_differences, "ieee") == by_differences
    for n, columns, size in [(1, 1, 40), (10**6, 1, 400), (2 * 10**6, 313, 4 * 20_000 * 32), (10**8, 16, 10**9)]:
        n_splits, rows = row_splits(n, columns, size, 64, hopper)
        assert rows % 64 == 0
        assert (n_splits - 1) * rows < n <= n_splits * rows
        assert n_splits == 1 or n_splits * size <= PARTIAL_BYTES
