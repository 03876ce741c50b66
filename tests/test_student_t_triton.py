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

from fastdc.kernels._triton import KINDS, PARTIAL_BYTES, Chip, in_wide_pieces, launch, product_precision, row_splits
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
    assert launch(10, True, "tf32x3", 4, hopper).block_k == 16
    light, rows, centers = (launch(100, True, "tf32x3", 4, hopper, kind)[:4] for kind in KINDS)
    assert (light, rows, centers) == ((128, 64, 16, 8), (128, 32, 16, 8), (64, 32, 16, 4))
    ragged = launch(100, False, "tf32x3", 4, hopper, "light")
    assert ragged[:4] == (128, 32, 16, 8)
    for chip in (hopper, hopper._replace(capability=100)):
        beside = [launch_beside(100, is_wide, "tf32x3", 4, chip, "light")[:4] for is_wide in (False, True)]
        assert beside == [(64, 32, 16, 8), (128, 32, 16, 8)]
        assert launch_beside(100, True, "tf32x3", 4, chip, "centers")[:4] == (64, 32, 16, 4)
    assert launch_beside(100, False, "ieee", 4, hopper, "light") == launch(100, False, "ieee", 4, hopper)
    x = torch.zeros(4, 32)
    assert in_wide_pieces(x, x[:, :16], x[1:])
    assert not any(in_wide_pieces(y) for y in (x[:, :17], x.T, x[:, ::2], torch.zeros(4, 40)[:, :32]))
    for n, columns, size in [(1, 1, 40), (10**6, 1, 400), (2 * 10**6, 313, 4 * 20_000 * 32), (10**8, 16, 10**9)]:
        n_splits, rows = row_splits(n, columns, size, 64, hopper)
        assert rows % 64 == 0
        assert (n_splits - 1) * rows < n <= n_splits * rows
        assert n_splits == 1 or n_splits * size <= PARTIAL_BYTES
