"""Losses over all pairs of a batch: values and gradients, selection, edges, torch."""

import math

import pytest
import torch

from fastdc.kernels._accuracy import assert_not_worse_than_torch, relative_error
from fastdc.kernels.pairwise import custom_ops, pairwise_bce, soft_nearest_neighbor_loss, triplet_loss
from tests.pairwise_cases import (
    DTYPES,
    loss_and_gradient,
    make_clusters,
    make_features,
    others_of,
    plain_all_triplets,
    plain_bce,
    plain_neighbors,
    plain_triplets,
    working,
)

SHAPES = [(5, 1, 2), (70, 3, 4), (200, 16, 7), (150, 17, 3), (257, 40, 20)]  # rows, features, classes
BACKENDS = ["reference", "numba"]


def name_shape(shape):
    return "N{}-D{}-K{}".format(*shape)


def strided(x):
    wide = torch.zeros(2 * x.shape[0], 2 * x.shape[1], dtype=x.dtype)
    wide[::2, ::2] = x
    return wide[::2, ::2]


def bce_by_labels(f, labels, **options):
    return pairwise_bce(f, labels, **options)


def bce_by_thresholds(f, labels, **options):
    return pairwise_bce(f, None, 0.9, 0.4, **options)


def plain_bce_by_thresholds(f, labels):
    return plain_bce(f, None, 0.9, 0.4)


def bce_by_others(f, labels, **options):
    return pairwise_bce(f, None, 0.9, 0.4, chosen_by=others_of(f), eps=1e-2, **options)  # 1 - g is small, and rounded


def plain_bce_by_others(f, labels):
    return plain_bce(f, None, 0.9, 0.4, 1e-2, chosen_by=others_of(f))


def neighbors(x, labels, **options):
    return soft_nearest_neighbor_loss(x, labels, 30.0, **options)


def plain_neighbors_at_30(x, labels):
    return plain_neighbors(x, labels, 30.0)


def all_triplets(x, labels, **options):
    return triplet_loss(x, labels, 0.7, "all", **options)


def make_mixture(*arguments, **options):
    """Clusters that overlap, so that no loss is almost zero."""
    return make_clusters(*arguments, spread=2.0, **options)


LOSSES = {  # the op, the same in plain torch, and its input
    "bce_by_labels": (bce_by_labels, plain_bce, make_features),
    "bce_by_thresholds": (bce_by_thresholds, plain_bce_by_thresholds, make_features),
    "bce_by_others": (bce_by_others, plain_bce_by_others, make_features),
    "soft_nearest_neighbors": (neighbors, plain_neighbors_at_30, make_mixture),
    "triplets": (triplet_loss, plain_triplets, make_mixture),
    "all_triplets": (all_triplets, plain_all_triplets, make_mixture),
}


@pytest.fixture(params=LOSSES)
def case(request):
    return LOSSES[request.param]


# --- by hand


@pytest.mark.parametrize("backend", BACKENDS)
def test_bce_by_hand(backend):
    f = torch.tensor([[2.0, 0.0], [3.0, 0.0], [0.6, 0.8], [0.0, 5.0]])
    # cosines: 1, 0.6, 0, 0.6, 0, 0.8
    loss = pairwise_bce(f, None, 0.75, 0.5, backend=backend)
    assert loss.item() == pytest.approx(-math.log(0.8) / 4, rel=1e-4)
    others = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 3.0], [1.0, 1.0]])  # the second and third are the same
    loss = pairwise_bce(f, None, 0.75, 0.5, chosen_by=others, backend=backend)
    assert loss.item() == pytest.approx(-(math.log(0.6) + math.log(1e-6) + math.log(0.4)) / 3, rel=1e-4)
    loss = pairwise_bce(f, torch.tensor([7, 7, 7, -1]), backend=backend)
    assert loss.item() == pytest.approx(-2 * math.log(0.6) / 3, rel=1e-4)
    loss = pairwise_bce(f, torch.tensor([0, 1, 2, 2]), eps=0.1, backend=backend)
    terms = [0.1, 0.5, 1.1, 0.5, 1.1, 0.9]
    assert loss.item() == pytest.approx(-sum(map(math.log, terms)) / 6, rel=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_soft_nearest_neighbors_by_hand(backend):
    x = torch.tensor([[0.0], [1.0], [-2.0], [5.0]])
    loss = soft_nearest_neighbor_loss(x, torch.tensor([4, 4, -9, 5]), 2.0, backend=backend)
    first = math.log1p((math.exp(-2) + math.exp(-12.5)) / math.exp(-0.5))
    second = math.log1p((math.exp(-4.5) + math.exp(-8)) / math.exp(-0.5))
    assert loss.item() == pytest.approx((first + second) / 2, rel=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_triplets_by_hand(backend):
    x, labels = torch.tensor([[0.0], [2.0], [3.0], [7.0], [20.0]]), torch.tensor([0, 0, 1, 1, 2])
    assert triplet_loss(x, labels, 0.5, backend=backend).item() == 5 / 4
    gaps = [2 - 3, 2 - 1, 4 - 1, 4 - 5]
    expected = sum(math.log1p(math.exp(gap)) for gap in gaps) / 4
    assert triplet_loss(x, labels, backend=backend).item() == pytest.approx(expected, rel=1e-6)
    # above zero with a margin of a half: (3; 7, 2), (3; 7, 0), (2; 0, 3)
    assert triplet_loss(x[:4], labels[:4], 0.5, "all", backend=backend).item() == pytest.approx(6.5 / 3)


# --- against plain torch


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=name_shape)
def test_values_and_gradients(case, shape, dtype):
    loss, plain, make = case
    if loss is all_triplets and dtype != torch.float64:
        pytest.skip("which triplets are above zero, rounding decides: see test_all_triplets_in_every_dtype")
    values, gradients = [], []
    for seed in range(3):
        x, labels = make(*shape, dtype, seed)
        truth, true_gradient = loss_and_gradient(plain, x.double(), labels)
        simple, simple_gradient = loss_and_gradient(plain, x.to(working(dtype)), labels)
        for backend in BACKENDS:
            got, gradient = loss_and_gradient(loss, x, labels, backend=backend)
            assert got.dtype == working(dtype)
            assert gradient.dtype == dtype
            values.append((got, simple, truth))
            if loss is triplet_loss and dtype.itemsize == 2:
                continue  # rows so coarse tie, and rounding chooses among them
            gradients.append((gradient, simple_gradient.to(dtype), true_gradient))
    if dtype == torch.float64:  # in which plain torch is the truth
        assert max(relative_error(got, truth) for got, _, truth in values + gradients) < 1e-12
        return
    assert_not_worse_than_torch(values, factor=2, dtype=working(dtype))
    if gradients:
        assert_not_worse_than_torch(gradients, factor=3, dtype=dtype)


@pytest.mark.parametrize("d", [3, 20])
def test_T39_gradcheck(case, d):
    loss, _, make = case
    x, labels = make(30, d, 3, torch.float64)
    labels[4] = -1
    for backend in BACKENDS:
        assert torch.autograd.gradcheck(lambda x: loss(x, labels, backend=backend), x.requires_grad_(), atol=1e-6)  # noqa: B023


# --- invariances


@pytest.mark.parametrize("d", [8, 40])
def test_T44_threads_do_not_change_a_bit(case, d, set_threads):
    loss, _, make = case
    x, labels = make(700, d, 5)
    results = []
    for threads in (1, 2, 5):
        set_threads(threads)
        results.append(loss_and_gradient(loss, x, labels))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0]))


@pytest.mark.parametrize("d", [8, 40])
def test_T20_strides_and_the_order_of_rows(case, d):
    loss, _, make = case
    x, labels = make(200, d, 4)
    value, gradient = loss_and_gradient(loss, x, labels)
    with torch.no_grad():
        assert torch.equal(loss(strided(x), labels), value)
        assert torch.equal(loss(x.T.contiguous().T, labels), value)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    moved, moved_gradient = loss_and_gradient(loss, x[order], labels[order])
    assert moved.item() == pytest.approx(value.item(), rel=1e-6)
    assert relative_error(moved_gradient, gradient[order]) < 1e-5


@pytest.mark.parametrize("d", [8, 40])
def test_T15_far_from_the_origin(d):
    x, labels = make_mixture(200, d, 4, offset=1e6)
    for loss, plain in (
        (neighbors, plain_neighbors_at_30),
        (triplet_loss, plain_triplets),
        (all_triplets, plain_all_triplets),
    ):
        truth, true_gradient = loss_and_gradient(plain, x.double(), labels)
        got, gradient = loss_and_gradient(loss, x, labels)
        assert got.item() == pytest.approx(truth.item(), rel=1e-5)
        assert relative_error(gradient, true_gradient) < 1e-5


def test_T16_half_precision_rows_whose_squares_overflow():
    x, labels = make_clusters(60, 100, 3, torch.float16)
    x = x * 100
    for loss, plain in ((soft_nearest_neighbor_loss, plain_neighbors), (triplet_loss, plain_triplets)):
        truth, true_gradient = loss_and_gradient(plain, x.double(), labels)
        got, gradient = loss_and_gradient(loss, x, labels)
        assert got.item() == pytest.approx(truth.item(), rel=1e-5)
        assert relative_error(gradient, true_gradient) < 2e-3
    f = (60000 * torch.ones(4, 500)).half()
    assert pairwise_bce(f).item() == pytest.approx(0.0, abs=2e-6)


# --- edges


@pytest.mark.parametrize("backend", BACKENDS)
def test_T18_rows_of_zeros_have_similarity_zero(backend):
    f = torch.zeros(3, 4)
    f[0, 1] = 1.0
    loss, gradient = loss_and_gradient(pairwise_bce, f, torch.tensor([0, 0, 1]), backend=backend)
    assert loss.item() == pytest.approx(-math.log(1e-6) / 3, rel=1e-5)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n", [1, 4])
def test_no_pairs_and_no_triplets(backend, n):
    x, alone, one = torch.randn(n, 3), torch.arange(n), torch.zeros(n, dtype=torch.int64)
    for loss, labels in (
        (soft_nearest_neighbor_loss, alone),
        (triplet_loss, alone),
        (triplet_loss, one),
        (all_triplets, alone),
        (all_triplets, one),
        (pairwise_bce, one - 1),
    ):
        value, gradient = loss_and_gradient(loss, x, labels, backend=backend)
        assert value.item() == 0
        assert torch.equal(gradient, torch.zeros(n, 3))


@pytest.mark.parametrize("d", [3, 20])
@pytest.mark.parametrize("backend", BACKENDS)
def test_T05_equal_rows(backend, d):
    x, labels = torch.ones(50, d), torch.arange(50) % 2
    value, gradient = loss_and_gradient(soft_nearest_neighbor_loss, x, labels, backend=backend)
    assert value.item() == pytest.approx(math.log(49 / 24), rel=1e-6)
    assert gradient.abs().max() < 1e-6
    value, gradient = loss_and_gradient(triplet_loss, x, labels, 0.25, backend=backend)
    assert value.item() == 0.25
    assert torch.equal(gradient, torch.zeros(50, d))
    value, gradient = loss_and_gradient(triplet_loss, x, labels, 0.25, "all", backend=backend)
    assert value.item() == 0.25
    assert torch.equal(gradient, torch.zeros(50, d))


@pytest.mark.parametrize("d", [3, 20])
@pytest.mark.parametrize("backend", BACKENDS)
def test_distances_far_beyond_the_temperature(backend, d):
    """Classes far apart give a loss of zero, rows far from their own class one that grows with the distance."""
    x, labels = make_clusters(60, d, 2, torch.float64)
    apart = (x + 1e4 * labels[:, None]).float()
    value, gradient = loss_and_gradient(soft_nearest_neighbor_loss, apart, labels, backend=backend)
    assert value.item() == 0
    assert gradient.isfinite().all()
    mixed = (x + 1e3 * (torch.arange(60) // 2 % 3)[:, None]).float()
    truth, true_gradient = loss_and_gradient(plain_neighbors, mixed.double(), labels, 1e-2)
    got, gradient = loss_and_gradient(soft_nearest_neighbor_loss, mixed, labels, 1e-2, backend=backend)
    assert got.item() == pytest.approx(truth.item(), rel=1e-5)
    assert relative_error(gradient, true_gradient) < 2e-3  # exponents of 1e3: a last place of one is 1e-4


@pytest.mark.parametrize("d", [3, 20])
@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_is_not_hidden(case, backend, d):
    loss, _, make = case
    x, labels = make(100, d, 3)
    x[50, 2] = math.nan
    assert loss(x, labels, backend=backend).isnan()


def test_nothing_of_the_size_of_all_pairs_is_held(run_python):
    """All pairs of 9,000 rows would be 324 MB."""
    code = """
import resource, torch
from fastdc.kernels.pairwise import pairwise_bce, soft_nearest_neighbor_loss, triplet_loss
def run(n):
    x, labels = torch.randn(n, 20, requires_grad=True), torch.arange(n) % 7
    for loss in (pairwise_bce, soft_nearest_neighbor_loss, triplet_loss):
        loss(x, labels).backward()
    triplet_loss(x, labels, 0.2, "all").backward()
run(300)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(9_000)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""
    assert int(run_python(code)) < 64 << 20


# --- torch


def test_second_derivatives_raise_or_are_right(case):
    loss, _, make = case
    x, labels = make(30, 5, 3, torch.float64)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x, labels), x, create_graph=True)
    if loss is triplet_loss:
        assert torch.autograd.gradgradcheck(lambda x: loss(x, labels), x)
    else:
        with pytest.raises(RuntimeError, match="no autograd formula"):
            gradient.square().sum().backward()


def test_gradient_is_scaled_and_may_be_asked_for_twice(case):
    loss, _, make = case
    x, labels = make(60, 5, 3)
    _, gradient = loss_and_gradient(loss, x, labels)
    x.requires_grad_()
    value = 4 * loss(x, labels)
    for _ in range(2):
        (again,) = torch.autograd.grad(value, x, retain_graph=True)
        assert torch.equal(again, 4 * gradient)


def test_opcheck():
    x, labels = make_clusters(40, 20, 3)
    unit = torch.nn.functional.normalize(make_features(40, 20, 3)[0], dim=1).requires_grad_()
    for chooses in ((None, None), (labels, None), (None, unit.detach().flip(0))):
        torch.library.opcheck(custom_ops.BCE["numba"], (unit, *chooses, [0.9, 0.4, 1e-6], True))
    torch.library.opcheck(custom_ops.NEIGHBORS["numba"], (x.requires_grad_(), labels, 1.0, True))
    torch.library.opcheck(custom_ops.NEIGHBORS["numba"], (x.detach(), labels, 1.0, False))
    torch.library.opcheck(custom_ops.triplet_loss_all_numba, (x.requires_grad_(), labels, 0.5, True))


def test_compiles_into_one_graph(case):
    loss, _, make = case
    x, labels = make(60, 20, 3)
    compiled = torch.compile(lambda x, labels: loss(x * 1.0, labels), fullgraph=True, backend="aot_eager")
    for a, b in zip(loss_and_gradient(compiled, x, labels), loss_and_gradient(loss, x, labels)):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-8)


def test_transforms_are_refused():
    x, labels = make_clusters(20, 3, 2)
    for loss in (soft_nearest_neighbor_loss, pairwise_bce, all_triplets):
        with pytest.raises(NotImplementedError, match=r"has no rule for torch\.func\.grad"):
            torch.func.grad(loss)(x, labels)


def test_T25_inference_mode(case):
    loss, _, make = case
    x, labels = make(40, 5, 3)
    expected = loss(x, labels)
    with torch.inference_mode():
        assert torch.equal(loss(x * 1, labels), expected)
