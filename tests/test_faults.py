"""Faults that concern every op: mixed devices, concurrent calls, other libraries beside."""

import itertools
import threading

import pytest
import torch

import fastdc
from tests.student_t_cases import make_points

OPS = {
    "student_t_assign": fastdc.student_t_assign,
    "student_t_statistics": fastdc.student_t_statistics,
    "dec_loss": fastdc.dec_loss,
    "nearest_center": fastdc.nearest_center,
    "kmeans_step": fastdc.kmeans_step,
}


@pytest.mark.parametrize("name", OPS)
def test_T26_mixed_devices_name_both(name):
    x, centers = make_points(20, 3, 4)
    with pytest.raises(ValueError, match="meta") as raised:
        OPS[name](x, centers.to("meta"))
    assert "cpu" in str(raised.value)
    assert "centers" in str(raised.value)


@pytest.mark.parametrize("name", OPS)
def test_T46_concurrent_calls_give_what_one_gives(name, set_threads):
    set_threads(2)
    x, centers = make_points(3000, 7, 20)
    alone = OPS[name](x, centers)
    results = [None] * 4

    def call(i):
        for _ in range(5):
            results[i] = OPS[name](x, centers)

    callers = [threading.Thread(target=call, args=(i,)) for i in range(len(results))]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for result in results:
        torch.testing.assert_close(result, alone, rtol=0, atol=0)


LIBRARIES = ["faiss", "torch", "sklearn.cluster", "numba"]
CLUSTER = """
import torch
from fastdc import dec_loss, nearest_center
x = torch.linspace(0, 1, 400).reshape(-1, 4).requires_grad_()
dec_loss(x, x[:3].detach()).backward()
assert nearest_center(x.detach(), x[:3].detach()).labels.bincount().sum() == 100
assert x.grad.isfinite().all()
"""


@pytest.mark.slow
@pytest.mark.peers("faiss")
@pytest.mark.parametrize(
    "order", list(itertools.permutations(["faiss", "torch", "sklearn.cluster", "numba"])), ids="-".join
)
def test_T47_libraries_import_in_any_order(order, run_python):
    run_python("".join(f"import {name}\n" for name in order) + CLUSTER)
