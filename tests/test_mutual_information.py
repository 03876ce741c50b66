"""Values of the mutual information room on CPUs; Triton's kernels have a file of their own."""

import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
import scipy.special
import scipy.stats
import sklearn.metrics
import torch

from fastdc.kernels._accuracy import assert_not_worse_than_torch, relative_error
from fastdc.kernels.mutual_information import (
    EntropyStatistics,
    conditional_entropy,
    entropy_statistics,
    iic_loss,
    iic_loss_of_joint,
    joint,
    joint_distribution,
    marginal_entropy,
    rim_loss,
    vat_kl,
)
from tests.mutual_information_cases import (
    DTYPES,
    OF_LOGITS,
    OF_PROBABILITIES,
    SHAPES,
    check,
    make_logits,
    make_probabilities,
    value_and_gradient,
    vat,
)

BACKENDS = ["reference", "numba"]

# --- cases by hand and by independent formulas


@pytest.mark.parametrize("backend", BACKENDS)
def test_entropies_by_hand(backend):
    p = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    mixed = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert conditional_entropy(p, backend=backend).item() == pytest.approx(math.log(2) / 2, rel=1e-6)
    assert marginal_entropy(p, backend=backend).item() == pytest.approx(mixed, rel=1e-6)
    logits = torch.tensor([[0.0, 0.0], [0.0, -1000.0]])
    assert rim_loss(logits, 2.0, backend=backend).item() == pytest.approx(math.log(2) / 2 - 2 * mixed, rel=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_vat_by_hand(backend):
    p, q = torch.tensor([[0.25, 0.75], [0.5, 0.5]]), torch.tensor([[0.5, 0.5], [0.5, 0.5]])
    loss, gradient = value_and_gradient(lambda x: vat_kl(p.log(), x, backend=backend), q.log())
    assert loss.item() == pytest.approx((0.25 * math.log(0.5) + 0.75 * math.log(1.5)) / 2, rel=1e-6)
    assert torch.allclose(gradient, (q - p) / 2, atol=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
def test_entropies_are_those_of_scipy(backend):
    logits = make_logits((50, 7), torch.float64)
    p = scipy.special.softmax(logits.numpy(), axis=1)
    conditional, marginal = scipy.stats.entropy(p, axis=1).mean(), scipy.stats.entropy(p.mean(0))
    of_p = torch.from_numpy(p)
    for x, from_logits in ((logits, True), (of_p, False)):
        options = {"from_logits": from_logits, "backend": backend}
        assert conditional_entropy(x, **options).item() == pytest.approx(conditional, rel=1e-13)
        assert marginal_entropy(x, **options).item() == pytest.approx(marginal, rel=1e-13)
    other = make_logits((50, 7), torch.float64, seed=1)
    q = scipy.special.softmax(other.numpy(), axis=1)
    expected = scipy.stats.entropy(p, q, axis=1).mean()
    assert vat_kl(logits, other, backend=backend).item() == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rim_is_the_information_between_rows_and_clusters(backend):
    """Of hard assignments it is minus the entropy of the clusters' sizes."""
    labels = torch.randint(5, (300,))
    logits = torch.nn.functional.one_hot(labels, 5) * 1000.0
    sizes = torch.bincount(labels, minlength=5).double() / 300
    assert rim_loss(logits, backend=backend).item() == pytest.approx(float(torch.xlogy(sizes, sizes).sum()), rel=1e-6)


def test_joint_by_hand():
    p1, p2 = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.5, 0.5], [0.0, 1.0]])
    assert torch.equal(joint_distribution(p1, p2, symmetric=False), torch.tensor([[0.25, 0.75], [0.0, 0.0]]))
    assert torch.equal(joint_distribution(p1, p2), torch.tensor([[0.25, 0.375], [0.375, 0.0]]))


def test_joint_of_labels_is_the_table_of_scikit_learn():
    a, b = torch.randint(4, (500,)), torch.randint(4, (500,))
    b = torch.where(torch.rand(500) < 0.6, a, b)
    table = sklearn.metrics.cluster.contingency_matrix(a, b) / 500
    one_hot = [torch.nn.functional.one_hot(labels).double() for labels in (a, b)]
    p = joint_distribution(*one_hot, symmetric=False)
    assert np.allclose(p.numpy(), table, rtol=1e-14)
    information = sklearn.metrics.mutual_info_score(a, b)
    assert iic_loss_of_joint(p).item() == pytest.approx(-information, rel=1e-10)
    both = sklearn.metrics.mutual_info_score(torch.cat([a, b]), torch.cat([b, a]))  # either order of the views
    assert iic_loss(*one_hot).item() == pytest.approx(-both, rel=1e-10)


@pytest.mark.parametrize("lamb", [1.0, 1.5])
def test_iic_is_the_papers_formula(lamb):
    p1, p2 = (make_probabilities((3, 40, 6), torch.float64, seed=s).requires_grad_() for s in (0, 1))
    joint = (p1.unsqueeze(3) * p2.unsqueeze(2)).mean(1)  # the form of the paper's code: b x k x k
    joint = (joint + joint.transpose(1, 2)) / 2
    row, column = joint.sum(2, keepdim=True), joint.sum(1, keepdim=True)
    losses = -(joint * (joint.log() - lamb * row.log() - lamb * column.log())).sum((1, 2))
    expected = torch.autograd.grad(losses.mean(), (p1, p2))
    assert torch.allclose(iic_loss(p1, p2, lamb, reduction="none"), losses, rtol=1e-12)
    got = torch.autograd.grad(iic_loss(p1, p2, lamb), (p1, p2))
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-14) for a, b in zip(got, expected))


# --- no worse than torch


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OF_LOGITS)
def test_of_logits_matches(shape, dtype, name):
    check("numba", lambda seed: (OF_LOGITS[name], make_logits(shape, dtype, seed=seed)), dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OF_PROBABILITIES)
def test_of_probabilities_matches(shape, dtype, name):
    check("numba", lambda seed: (OF_PROBABILITIES[name], make_probabilities(shape, dtype, seed=seed)), dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [3.0, 0.3], ids=["far", "near"])
def test_vat_matches(shape, dtype, size):
    def make_case(seed):
        logits = make_logits(shape, dtype, seed=seed)
        return vat(logits), logits + make_logits(shape, dtype, spread=size, seed=seed + 100)

    check("numba", make_case, dtype)


@pytest.mark.parametrize("shape", [(1, 1), (300, 10), (5, 257, 33), (40_000, 4)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_joint_and_iic_match(shape, dtype):
    def both(p1, p2):
        p1, p2 = p1.detach().requires_grad_(), p2.detach().requires_grad_()
        loss = iic_loss(p1, p2, 1.2)
        loss.backward()
        return joint_distribution(p1, p2).detach(), loss.detach(), p1.grad, p2.grad

    def plain(p1, p2):
        p1, p2 = p1.detach().requires_grad_(), p2.detach().requires_grad_()
        a, b = (p.to(torch.promote_types(p.dtype, torch.float32)) for p in (p1, p2))
        product = a.mT @ b / a.shape[-2]
        product = (product + product.mT) / 2
        loss = iic_loss_of_joint(product, 1.2).mean()
        loss.backward()
        return product.detach(), loss.detach(), p1.grad, p2.grad

    results = []
    for seed in range(4):
        p1, p2 = (make_probabilities(shape, dtype, seed=seed + 10 * view) for view in range(2))
        results.append(list(zip(both(p1, p2), plain(p1, p2), plain(p1.double(), p2.double()))))
    for factor, cases in zip((2, 2, 3, 3), zip(*results)):
        if all(bool((truth == 0).all()) for *_, truth in cases):
            assert all(bool((got == 0).all()) for got, *_ in cases)
        elif dtype == torch.float64:
            assert max(relative_error(got, truth) for got, _, truth in cases) < 1e-13
        else:
            assert_not_worse_than_torch(cases, factor=factor, dtype=dtype)


def test_long_joints_add_up_in_float64():
    p1, p2 = torch.rand(2_000_000, 2), torch.rand(2_000_000, 2)
    exact = p1.double().T @ p2.double() / 2_000_000
    assert relative_error(joint_distribution(p1, p2, symmetric=False), exact) < 1e-6


def test_vat_keeps_its_digits_where_the_views_are_close():
    """Of a perturbation of 1e-5 the loss is 1e-10: the difference of two softmaxes would be noise."""
    logits = make_logits((300, 10))
    perturbed = logits + make_logits((300, 10), spread=1e-5, seed=1)
    truth = value_and_gradient(lambda x: vat_kl(logits.double(), x, backend="reference"), perturbed.double())
    got = value_and_gradient(lambda x: vat_kl(logits, x, backend="numba"), perturbed)
    plain = value_and_gradient(lambda x: vat_kl(logits, x, backend="reference"), perturbed)
    assert [relative_error(a, b) < 1e-5 for a, b in zip(got, truth)] == [True, True]
    assert [relative_error(a, b) > 1e-3 for a, b in zip(plain, truth)] == [True, True]


@pytest.mark.parametrize("name", OF_LOGITS)
def test_large_offset(name):
    def make_case(seed):
        return OF_LOGITS[name], make_logits((300, 12), offset=1e4, seed=seed)

    check("numba", make_case, torch.float32)


# --- extreme inputs


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_extreme_logits_are_finite(dtype):
    logits = torch.tensor([[6e4, -6e4, 0.0], [-6e4, -6e4, -6e4], [1.0, 1.0, 1.0]], dtype=dtype)
    for function in OF_LOGITS.values():
        for got, exact in zip(*(value_and_gradient(function, logits, b) for b in ("numba", "reference"))):
            assert bool(torch.isfinite(got).all())
            assert torch.allclose(got.double(), exact.double(), rtol=1e-3, atol=1e-6)
    perturbed = logits.flip(0)
    for got, exact in zip(*(value_and_gradient(vat(logits), perturbed, b) for b in ("numba", "reference"))):
        assert bool(torch.isfinite(got).all())
        assert torch.allclose(got.double(), exact.double(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_masked_clusters_add_nothing(dtype):
    few = make_logits((70, 5), dtype)
    masked = torch.cat([few[:, :2], torch.full((70, 3), -torch.inf, dtype=dtype), few[:, 2:]], dim=1)
    moved = masked + make_logits((70, 8), dtype, seed=1)
    kept = [0, 1, 5, 6, 7]
    for backend in BACKENDS:
        for function in OF_LOGITS.values():
            value, gradient = value_and_gradient(function, masked, backend)
            expected, expected_gradient = value_and_gradient(function, few, backend)
            assert torch.allclose(value, expected, rtol=1e-6)
            assert torch.allclose(gradient[:, kept], expected_gradient, rtol=1e-4, atol=1e-8)
            assert bool((gradient[:, 2:5] == 0).all())
        value, gradient = value_and_gradient(vat(masked), moved, backend)
        expected, expected_gradient = value_and_gradient(vat(few), moved[:, kept], backend)
        assert torch.allclose(value, expected, rtol=1e-6)
        assert torch.allclose(gradient[:, kept], expected_gradient, rtol=1e-4, atol=1e-8)
        narrower = few.clone()
        narrower[:, 0] = -torch.inf
        assert vat_kl(few, narrower, backend=backend).isposinf()


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_at_probability_zero_is_finite(backend):
    p = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    _, gradient = value_and_gradient(OF_PROBABILITIES["conditional"], p, backend)
    assert bool(torch.isfinite(gradient).all())
    assert gradient[0, 1] > 40
    assert gradient[0, 0] == -0.5


def test_iic_of_empty_clusters_is_finite():
    p = torch.zeros(10, 4)
    p[:, 0] = 1.0
    loss, gradient = value_and_gradient(lambda x: iic_loss(x, p), p)
    assert loss.item() == pytest.approx(0.0, abs=1e-12)
    assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_with_nan_shows(backend):
    for column in (0, 3):
        x = make_logits((70, 5))
        x[7, column] = float("nan")
        for function in [*OF_LOGITS.values(), *OF_PROBABILITIES.values(), vat(make_logits((70, 5)))]:
            assert function(x, backend).isnan()
        assert vat(x)(make_logits((70, 5)), backend).isnan()


# --- invariances


def test_T44_threads_do_not_change_a_bit(set_threads):
    logits, other = make_logits((2, 30_000, 9)), make_logits((2, 30_000, 9), seed=1)
    functions = [*OF_LOGITS.values(), *OF_PROBABILITIES.values(), vat(other)]
    results = []
    for threads in (1, 2, 3):
        set_threads(threads)
        results.append([t for f in functions for t in value_and_gradient(f, logits.softmax(-1), "numba")])
    for tensors in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(tensors, results[0]))


@pytest.mark.parametrize("from_logits", [True, False])
def test_statistics_add_up_over_chunks(from_logits):
    x = make_logits((3, 5000, 13)) if from_logits else make_probabilities((3, 5000, 13))
    whole = entropy_statistics(x, from_logits=from_logits)
    cuts = [0, 1, 700, 4096, 5000]
    merged = EntropyStatistics.merge(entropy_statistics(x[:, a:b], from_logits=from_logits) for a, b in pairwise(cuts))
    assert merged.n_samples == 5000
    assert torch.allclose(whole.mass, merged.mass, rtol=1e-6)
    assert torch.allclose(whole.entropy_sum, merged.entropy_sum, rtol=1e-12)
    conditional, marginal = (f(x, from_logits=from_logits) for f in (conditional_entropy, marginal_entropy))
    assert torch.allclose(merged.conditional_entropy.float(), conditional, rtol=1e-6)
    assert torch.allclose(merged.marginal_entropy.float(), marginal, rtol=1e-6)


def test_joints_add_up_over_chunks():
    p1, p2 = make_probabilities((900, 6), torch.float64), make_probabilities((900, 6), torch.float64, seed=1)
    parts = [joint_distribution(p1[a:b], p2[a:b]) * (b - a) / 900 for a, b in pairwise([0, 1, 300, 900])]
    merged = torch.stack(parts).sum(0)
    assert torch.allclose(merged, joint_distribution(p1, p2), rtol=1e-12)
    assert torch.allclose(iic_loss_of_joint(merged), iic_loss(p1, p2), rtol=1e-10)


def test_joint_does_not_depend_on_the_chunk(monkeypatch):
    p1, p2 = (make_probabilities((2, 300, 6), torch.float16, seed=s) for s in (0, 1))
    whole = value_and_gradient(lambda x: iic_loss(x, p2), p1)
    monkeypatch.setattr(joint, "ROWS_A_PRODUCT", 64)
    for a, b in zip(value_and_gradient(lambda x: iic_loss(x, p2), p1), whole):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-7)


def test_heads_are_independent():
    x, other = make_logits((3, 200, 6)), make_logits((3, 200, 6), seed=1)
    for function in OF_LOGITS.values():
        assert torch.allclose(function(x, "numba"), torch.stack([function(head, "numba") for head in x]), rtol=1e-6)
    each = torch.stack([vat_kl(a, b) for a, b in zip(x, other)])
    assert torch.allclose(vat_kl(x, other), each.mean(), rtol=1e-6)
    p, q = x.softmax(-1), other.softmax(-1)
    assert torch.allclose(iic_loss(p, q, reduction="none"), torch.stack([iic_loss(a, b) for a, b in zip(p, q)]))
    assert torch.allclose(iic_loss(p, q), iic_loss(p, q, reduction="none").mean())


def test_order_of_rows_clusters_and_views_does_not_matter():
    x, other = make_logits((500, 9)), make_logits((500, 9), seed=1)
    rows, clusters = torch.randperm(500), torch.randperm(9)
    for function in (*OF_LOGITS.values(), vat(other)):
        moved = vat(other[rows][:, clusters]) if function not in OF_LOGITS.values() else function
        assert torch.allclose(function(x, "numba"), moved(x[rows][:, clusters], "numba"), rtol=1e-5)
        shifted = x + torch.randn(500, 1)  # a softmax does not see it
        assert torch.allclose(function(x, "numba"), function(shifted, "numba"), rtol=1e-5)
    p, q = x.softmax(1), other.softmax(1)
    assert iic_loss(p, q).item() == pytest.approx(iic_loss(q, p).item(), rel=1e-5)
    assert iic_loss(p[rows][:, clusters], q[rows][:, clusters]).item() == pytest.approx(iic_loss(p, q).item(), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_T20_strides(dtype):
    x, other = make_logits((100, 20), dtype), make_logits((100, 20), dtype, seed=1)
    wide = torch.zeros(200, 40, dtype=dtype)
    wide[::2, ::2] = x
    for view in (wide[::2, ::2], x.t().contiguous().t()):
        assert not view.is_contiguous()
        for function in (*OF_LOGITS.values(), *OF_PROBABILITIES.values(), vat(other)):
            for a, b in zip(value_and_gradient(function, view, "numba"), value_and_gradient(function, x, "numba")):
                assert torch.equal(a, b)
    row = x[:1].expand(100, 20)
    assert torch.equal(rim_loss(row), rim_loss(row.contiguous()))


def test_T21_read_only_memory():
    array = np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32)
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch says so, once a process
        x = torch.from_numpy(array)
    before = array.copy()
    rim_loss(x)
    vat_kl(x, x)
    assert np.array_equal(before, array)


def test_poisoned_memory(monkeypatch):
    """Every element of a result is written: uninitialised memory is filled with NaN here."""
    original = np.empty

    def poisoned(shape, dtype=float, **options):
        array = original(shape, dtype, **options)
        if array.dtype.kind == "f":
            array.fill(np.nan)
        return array

    monkeypatch.setattr(np, "empty", poisoned)
    x, other = make_logits((131, 7)), make_logits((131, 7), seed=1)
    for function in (*OF_LOGITS.values(), *OF_PROBABILITIES.values(), vat(other)):
        assert all(bool(torch.isfinite(t).all()) for t in value_and_gradient(function, x.softmax(1), "numba"))
