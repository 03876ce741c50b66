"""Scratch arrays kept between calls."""

import threading

import numpy as np
import pytest
import torch

from fastdc.kernels import _workspace
from fastdc.kernels._workspace import workspace
from fastdc.kernels.contrastive import nt_xent
from fastdc.kernels.sinkhorn import optimal_transport_loss, swapped_prediction_loss

FLOAT = np.dtype(np.float32)


def test_kept_by_name_and_thread(monkeypatch):
    first = workspace("test", (3, 4), FLOAT)
    assert first.shape == (3, 4)
    assert first.dtype == FLOAT
    assert np.shares_memory(workspace("test", (2, 5), FLOAT), first)
    assert not np.shares_memory(workspace("other", (3, 4), FLOAT), first)
    assert not np.shares_memory(workspace("test", (3, 4), np.dtype(np.float64)), first)  # more bytes
    elsewhere = []
    thread = threading.Thread(target=lambda: elsewhere.append(workspace("test", (3, 4), FLOAT)))
    thread.start()
    thread.join()
    assert not np.shares_memory(elsewhere[0], workspace("test", (3, 4), FLOAT))
    monkeypatch.setattr(_workspace, "MOST_BYTES", 40)
    assert not np.shares_memory(workspace("test", (3, 4), FLOAT), workspace("test", (3, 4), FLOAT))


@pytest.mark.parametrize("loss", [nt_xent, optimal_transport_loss, lambda x, y: swapped_prediction_loss(x, y, y[:7])])
def test_results_are_not_scratch(loss):
    """A second call changes nothing that the first has returned."""
    generator = torch.Generator().manual_seed(0)
    results = []
    for _ in range(2):
        leaves = [torch.randn(70, 16, generator=generator).div(4).requires_grad_() for _ in range(2)]
        value = loss(*leaves)
        results.append((value, *torch.autograd.grad(value, leaves)))
        if len(results) == 1:
            before = [t.detach().clone() for t in results[0]]
    assert all(torch.equal(a, b) for a, b in zip(results[0], before))
