"""Results do not depend on where in memory arrays lie: LLVM checks for overlap, and would add otherwise there."""

import numpy as np
import pytest
import torch

from fastdc.kernels.sinkhorn import numba_kernel as sinkhorn_kernel
from fastdc.kernels.sinkhorn import numba_tiles as sinkhorn_tiles
from fastdc.kernels.student_t import numba_kernel as student_t_kernel
from fastdc.kernels.student_t import numba_tiles as student_t_tiles
from tests.student_t_cases import make_points

FLOAT32 = np.dtype(np.float32)


def beside(array, length, gap):
    """A copy of the array, and an empty one of some length behind it, ``gap`` numbers apart."""
    memory = np.empty(array.size + gap + length, array.dtype)
    copy = memory[: array.size].reshape(array.shape)
    copy[:] = array
    return copy, memory[array.size + gap :]


@pytest.mark.parametrize("gap", [0, 4, 16])
def test_student_t_scratch_beside_the_rows(gap):
    x, centers = make_points(64, 7, 40)
    job = student_t_kernel._Job(x, centers, 1.0)
    product = job.scratch[0].rows.product
    results = []
    for rows, space in ((x.numpy(), np.zeros(product.rows.size, FLOAT32)), beside(x.numpy(), product.rows.size, gap)):
        space[:] = 0
        moved = product._replace(rows=space.reshape(product.rows.shape))
        scratch = job.scratch[0]._replace(rows=job.scratch[0].rows._replace(product=moved))
        q = np.empty((64, 7), FLOAT32)
        student_t_tiles.assign_block(rows, job.centers, scratch, None, q)
        results.append((q, moved.sq_norms.copy()))
    for apart, near in zip(*results):
        np.testing.assert_array_equal(apart, near)


@pytest.mark.parametrize("gap", [0, 4, 16])
def test_target_beside_q(gap):
    q = np.random.default_rng(0).uniform(0.1, 1, (1, 40)).astype(FLOAT32)
    gain = np.ones(40, FLOAT32)
    results = []
    for given, space in ((q, np.empty(40, FLOAT32)), beside(q, 40, gap)):
        p = space.reshape(1, 40)
        student_t_tiles.target_block(given, gain, None, p)
        results.append(p)
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("gap", [0, 4, 16])
def test_sinkhorn_scratch_beside_the_potential(gap):
    scores = np.random.default_rng(0).normal(size=(64, 40)).astype(FLOAT32)
    potential = sinkhorn_kernel.make_potential(torch.full((40,), -3.3, dtype=torch.float64), 40, FLOAT32)
    scale = sinkhorn_kernel.make_scale(0.05, FLOAT32)
    results = []
    for part, space in ((potential.part, np.empty(40, FLOAT32)), beside(potential.part, 40, gap)):
        logs, mass = np.empty(64), np.empty(40)
        scratch = (space, np.empty(40, FLOAT32))
        bounds, weight = np.full(64, 100, FLOAT32), np.ones(64)
        near = potential._replace(part=part)
        sinkhorn_tiles.step_block(scores, near, scale, bounds, weight, logs, scratch, mass)
        results.append((logs, mass))
    for apart, near in zip(*results):
        np.testing.assert_array_equal(apart, near)
