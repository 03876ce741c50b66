"""The GPU kernels of the contrastive room: run by Triton's interpreter, and on a GPU.

The tests of values stand in ``contrastive_triton_cases.py``, which runs in a process of its own: kernels take up the
interpreter when they are imported.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastdc.kernels.contrastive.custom_ops import _sums_in_order, same_label_sums

pytest.importorskip("triton")

CASES = str(Path(__file__).with_name("contrastive_triton_cases.py"))
PYTEST = ("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", CASES)


def test_interpreted(interpreted):
    assert "passed" in interpreted(PYTEST)


@pytest.mark.parametrize("labels", [[5], [2, 2], [7, -3, 7, 0, -3, 7], list(range(9, 0, -1))])
def test_sums_of_labels_as_on_a_gpu(labels):
    """Labels that nobody has are asked for too."""
    labels, wanted = torch.tensor(labels), torch.tensor([7, 100, -100, 2, 5, 2])
    values = torch.randn(len(labels), 3, dtype=torch.float64)
    sums, counts = _sums_in_order(values, labels, wanted)
    expected, numbers = same_label_sums(values, labels, wanted)
    assert torch.allclose(sums, expected, rtol=1e-14)
    assert torch.equal(counts, numbers)
    same = labels == wanted[:, None]
    assert torch.equal(counts, same.sum(1))
    assert torch.allclose(sums, same.double() @ values)


@pytest.mark.gpu
def test_on_the_gpu():
    done = subprocess.run([sys.executable, *PYTEST], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
