"""Values of the Student t room on CPUs; Triton's kernels have a file of their own."""

import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch

from fastdc.kernels._accuracy import assert_not_worse_than_torch, relative_error
from fastdc.kernels.student_t import (
    StudentTStatistics,
    dec_loss,
    student_t_assign,
    student_t_statistics,
    target_distribution,
)
from tests.student_t_cases import (
    DTYPES,
    EXPONENTS,
    SHAPES,
    TARGETS,
    check_loss,
    loss_and_gradients,
    make_points,
    make_target,
    name_shape,
)

# --- cases by hand and by independent formulas


def test_assign_by_hand():
    # d^2 = 0 and 4: kernels 1 and 1/5
    q = student_t_assign(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 2.0]]), backend="numba")
    assert torch.allclose(q, torch.tensor([[5 / 6, 1 / 6]]))


def test_loss_by_hand():
    # q = (2/3, 1/3) in both rows mirrored: f = (1, 1), p = (4/5, 1/5)
    x, centers = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [1.0]])
    expected = 0.8 * math.log(0.8 / (2 / 3)) + 0.2 * math.log(0.2 / (1 / 3))
    for backend in ("reference", "numba"):
        assert dec_loss(x, centers, backend=backend).item() == pytest.approx(expected, rel=1e-5)
        assert dec_loss(x, centers, reduction="sum", backend=backend).item() == pytest.approx(2 * expected, rel=1e-5)


def test_reference_is_the_papers_formula():
    x, centers = make_points(50, 6, 4, torch.float64)
    sq_dists = np.square(x.numpy()[:, None] - centers.numpy()).sum(2)
    kernel = (1 + sq_dists / 1.5) ** (-(1.5 + 1) / 2)
    q = kernel / kernel.sum(1, keepdims=True)
    weight = q**2 / q.sum(0)
    p = weight / weight.sum(1, keepdims=True)
    assert np.allclose(student_t_assign(x, centers, 1.5, backend="reference"), q, rtol=1e-12)
    loss = dec_loss(x, centers, alpha=1.5, backend="reference")
    assert loss.item() == pytest.approx((p * np.log(p / q)).sum() / 50, rel=1e-12)


def test_gradient_is_the_papers_formula():
    x, centers = make_points(40, 5, 3, torch.float64)
    q = student_t_assign(x, centers)
    p = target_distribution(q)
    difference = x[:, None] - centers
    weight = 2 * (p - q) / (1 + difference.square().sum(2))  # eq. (4) of DEC, alpha = 1
    _, grad_x, grad_centers = loss_and_gradients(x, centers, "numba", reduction="sum")
    assert torch.allclose(grad_x, (weight[..., None] * difference).sum(1), rtol=1e-10)
    assert torch.allclose(grad_centers, -(weight[..., None] * difference).sum(0), rtol=1e-10)


# --- no worse than torch


@pytest.mark.parametrize("shape", SHAPES, ids=name_shape)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("alpha", [1.0, 2.5])
def test_assign_matches(shape, dtype, alpha):
    x, centers = make_points(*shape, dtype)
    truth = student_t_assign(x.double(), centers.double(), alpha, backend="reference")
    plain = student_t_assign(x, centers, alpha, backend="reference")
    got = student_t_assign(x, centers, alpha, backend="numba")
    assert got.dtype == dtype
    assert_not_worse_than_torch([(got, plain, truth)], factor=2, dtype=dtype)
    assert torch.allclose(got.double().sum(1), torch.ones(shape[0], dtype=torch.float64), atol=shape[1] ** 0.5 * 1e-2)


@pytest.mark.parametrize("shape", SHAPES, ids=name_shape)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("alpha", "power", "frequency_power"), EXPONENTS)
def test_loss_matches(shape, target, alpha, power, frequency_power):
    exponents = {"alpha": alpha, "power": power, "frequency_power": frequency_power}

    def make_case(seed):
        x, centers = make_points(*shape, seed=seed)
        return x, centers, {**make_target(target, x, centers, seed), **exponents}

    check_loss(make_case)


@pytest.mark.parametrize(("alpha", "power", "frequency_power"), EXPONENTS)
def test_small_loss_of_nearly_certain_rows(alpha, power, frequency_power):
    """What p and q lack of one decides: sums of a large number and small ones, in any order, must lose nothing."""
    exponents = {"alpha": alpha, "power": power, "frequency_power": frequency_power}
    check_loss(lambda seed: (*make_points(257, 10, 33, spread=0.3, seed=seed), exponents), seeds=20)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("alpha", [1.0, 2.5])
def test_float64_stays_float64(target, alpha):
    x, centers = make_points(257, 10, 33, torch.float64)
    options = {**make_target(target, x, centers), "alpha": alpha}
    for got, exact in zip(*(loss_and_gradients(x, centers, b, **options) for b in ("numba", "reference"))):
        assert got.dtype == torch.float64
        assert relative_error(got, exact) < 1e-13


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("target", TARGETS)
def test_loss_matches_in_every_dtype(dtype, target):
    def make_case(seed):
        x, centers = make_points(257, 10, 33, dtype, seed=seed)
        return x, centers, make_target(target, x, centers, seed)

    x, centers, options = make_case(0)
    got = loss_and_gradients(x, centers, "numba", **options)
    assert [t.dtype for t in got] == [torch.float32, dtype, dtype]
    # half inputs are computed in float32: the gradients carry the rounding of their own dtype only
    check_loss(make_case, dtype)


@pytest.mark.parametrize("shape", [(300, 10, 10), (300, 12, 48)], ids=name_shape)
@pytest.mark.parametrize("spread", [0.7, 0.01], ids=["wide", "tight"])
def test_large_offset(shape, spread):
    check_loss(lambda seed: (*make_points(*shape, offset=1e4, spread=spread, seed=seed), {}))


@pytest.mark.parametrize("d", [6, 40])
def test_distance_zero_and_duplicate_centers(d):
    def make_case(seed):
        x, centers = make_points(130, 8, d, seed=seed)
        centers[3] = centers[5]
        x[:40] = centers[torch.arange(40) % 8]
        return x, centers, {}

    check_loss(make_case)
    q = student_t_assign(*make_case(0)[:2])
    assert torch.equal(q[:, 3], q[:, 5])


@pytest.mark.parametrize("shape", [(200, 7, 24), (200, 1, 24), (200, 7, 1), (1, 7, 24)], ids=name_shape)
def test_far_groups_of_near_centers(shape):
    def make_case(seed):
        n, k, d = shape
        x, centers = make_points(n, k, d, spread=0.05, seed=seed)
        centers[k // 2 :] += 300.0
        x[n // 2 :] += 300.0
        return x, centers, {}

    check_loss(make_case)


@pytest.mark.parametrize("alpha", [1.0, 1.7])
@pytest.mark.parametrize("d", [4, 18])
def test_gradcheck(alpha, d):
    x, centers = make_points(5, 3, d, torch.float64, spread=1.5)
    inputs = (x.requires_grad_(), centers.requires_grad_())
    for target in ("given", "frozen"):
        options = make_target(target, x.detach(), centers.detach())
        for backend in ("reference", "numba"):
            assert torch.autograd.gradcheck(
                lambda x, c, o=options, b=backend: dec_loss(x, c, alpha=alpha, backend=b, **o), inputs
            )
    assert torch.autograd.gradcheck(lambda x, c: student_t_assign(x, c, alpha, backend="numba"), inputs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("power", "frequency_power"), [(2.0, 1.0), (1.0, 0.5), (3.0, 0.0)])
def test_target_distribution_matches(dtype, power, frequency_power):
    q = student_t_assign(*make_points(300, 12, 6)).to(dtype)
    frequency = torch.rand(12, dtype=torch.float64) + 0.5
    for f in (None, frequency):
        exact = None if f is None else f.double()
        truth = target_distribution(q.double(), exact, power, frequency_power, backend="reference")
        plain = target_distribution(q, f, power, frequency_power, backend="reference")
        got = target_distribution(q, f, power, frequency_power, backend="numba")
        assert got.dtype == dtype
        assert_not_worse_than_torch([(got, plain, truth)], factor=2, dtype=dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=name_shape)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_statistics_match(shape, dtype):
    x, centers = make_points(*shape, dtype)
    previous = torch.zeros(shape[0], dtype=torch.int64)
    truth = student_t_statistics(x.double(), centers.double(), 1.0, previous, backend="reference")
    got = student_t_statistics(x, centers, 1.0, previous, backend="numba")
    sq_dists = torch.cdist(x.double(), centers.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
    chosen = sq_dists.gather(1, got.labels[:, None])[:, 0]
    assert bool((chosen <= sq_dists.amin(1) * (1 + 1e-5) + 1e-12).all())
    assert relative_error(got.frequency, truth.frequency) < 2e-6
    assert relative_error(got.confidence, truth.confidence) < 2e-6
    assert relative_error(got.entropy, truth.entropy) < 5e-6 or shape[1] == 1
    assert got.n_changed.item() == (got.labels != previous).sum().item()
    assert got.frequency.dtype == torch.float64
    assert got.labels.dtype == torch.int64


# --- invariances


def test_T44_threads_do_not_change_a_bit():
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for d in (10, 40):
                x, centers = make_points(9000, 20, d)
                results.append((threads, d, *loss_and_gradients(x, centers, "numba")))
    finally:
        torch.set_num_threads(before)
    for threads, d, *tensors in results:
        first = next(r for r in results if r[1] == d)
        assert all(torch.equal(a, b) for a, b in zip(tensors, first[2:])), (threads, d)


def test_statistics_add_up_over_chunks():
    x, centers = make_points(5000, 13, 20)
    previous = torch.randint(13, (5000,))
    whole = student_t_statistics(x, centers, 1.0, previous)
    cuts = [0, 1, 700, 4096, 5000]
    merged = StudentTStatistics.merge(
        student_t_statistics(x[a:b], centers, 1.0, previous[a:b]) for a, b in pairwise(cuts)
    )
    assert torch.equal(whole.labels, merged.labels)
    assert torch.equal(whole.n_changed, merged.n_changed)
    assert torch.allclose(whole.frequency, merged.frequency, rtol=1e-6)
    assert torch.equal(whole.confidence, merged.confidence)


def test_target_does_not_depend_on_the_scale_of_f():
    x, centers = make_points(200, 9, 12)
    frequency = torch.rand(9) + 0.1
    losses = [dec_loss(x, centers, frequency=frequency * s) for s in (1.0, 1e-20, 1e20)]
    assert max(losses) - min(losses) < 1e-6
    q = student_t_assign(x, centers)
    a, b = (target_distribution(q, frequency * s) for s in (1.0, 1e15))
    assert torch.allclose(a, b, rtol=1e-5)


def test_frozen_target_is_the_papers_refresh():
    """p of a refresh over all rows, given as a matrix or rebuilt from the embeddings: the same loss and gradients."""
    x, centers = make_points(600, 8, 20)
    refreshed = student_t_statistics(x, centers)
    p = target_distribution(student_t_assign(x, centers), refreshed.frequency)
    moved, batch = x[100:356] + 0.05, slice(100, 356)
    given = loss_and_gradients(moved, centers * 1.01, "numba", target=p[batch])
    rebuilt = loss_and_gradients(
        moved,
        centers * 1.01,
        "numba",
        target_x=x[batch],
        target_centers=centers,
        frequency=refreshed.frequency,
    )
    for a, b in zip(given, rebuilt):
        assert relative_error(a, b) < 5e-6


def test_row_order_does_not_matter():
    x, centers = make_points(500, 9, 30)
    order = torch.randperm(500)
    loss, grad_x, grad_centers = loss_and_gradients(x, centers, "numba")
    permuted = loss_and_gradients(x[order], centers, "numba")
    assert relative_error(permuted[0], loss) < 1e-6
    assert relative_error(permuted[1], grad_x[order]) < 1e-5
    assert relative_error(permuted[2], grad_centers) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_T20_strides(dtype):
    x, centers = make_points(100, 6, 20, dtype)
    expected = dec_loss(x, centers)
    wide = torch.zeros(200, 40, dtype=dtype)
    wide[::2, ::2] = x
    fortran = x.t().contiguous().t()
    for view in (wide[::2, ::2], fortran):
        assert not view.is_contiguous()
        assert torch.equal(dec_loss(view, centers), expected)
    row = x[:1].expand(100, 20)
    assert torch.equal(dec_loss(row, centers), dec_loss(row.contiguous(), centers))


def test_T21_read_only_memory():
    array = np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32)
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch says so, once a process
        x = torch.from_numpy(array)
    before = array.copy()
    dec_loss(x, x[:3].clone())
    assert np.array_equal(before, array)


@pytest.mark.slow
def test_many_centers_in_little_memory():
    """n x k would be 160 GB."""
    x, centers = make_points(2_000_000, 20_000, 32)
    loss, grad_x, grad_centers = loss_and_gradients(x, centers, "numba")
    rows = torch.arange(0, 2_000_000, 400_000)
    frequency = student_t_statistics(x, centers).frequency
    _, expected, _ = loss_and_gradients(
        x[rows].double(), centers.double(), "reference", frequency=frequency, reduction="sum"
    )
    assert relative_error(grad_x[rows] * 2_000_000, expected) < 1e-4
    assert loss.isfinite()
    assert bool(grad_centers.isfinite().all())
