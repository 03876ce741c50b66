"""Optimal transport without scores or distances: codes and labels from features, and the clustering loss."""

import math

import numpy as np
import pytest
import torch

import fastdc
from fastdc.kernels._accuracy import assert_not_worse_than_torch, relative_error
from fastdc.kernels.sinkhorn import (
    chunks,
    numba_held,
    numba_scaling,
    numba_transport,
    optimal_transport_labels,
    optimal_transport_loss,
    sinkhorn_assign,
    sinkhorn_assign_features,
    transport_ops,
)
from fastdc.kernels.sinkhorn.iterate import Marginals
from fastdc.kernels.sinkhorn.numba_transport import FeaturePasses
from fastdc.losses import OptimalTransportLoss
from tests.sinkhorn_cases import DTYPES, exact_assign, held_plan, make_views, plain_assign

BACKENDS = ["reference", "numba"]
SHAPES = [(1, 1, 2), (7, 3, 5), (130, 300, 33), (1100, 20, 64)]  # n_samples, n_prototypes, n_features


def make_clusters(n, k, d, dtype=torch.float32, seed=0, offset=0.0):
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(k, d, generator=generator) + offset
    x = centers[torch.randint(k, (n,), generator=generator)] + 0.7 * torch.randn(n, d, generator=generator)
    return x.to(dtype), (centers + 0.1).to(dtype)


def exact_loss(x, centers, epsilon, n_iters, a=None, b=None):
    """The loss and both gradients with the plan held, float64."""
    plan, cost = held_plan(x, centers, epsilon, n_iters, a, b)
    x, centers = x.double().numpy(), centers.double().numpy()
    grad_x = 2 * (plan.sum(1)[:, None] * x - plan @ centers)
    grad_centers = 2 * (plan.sum(0)[:, None] * centers - plan.T @ x)
    return tuple(torch.from_numpy(np.asarray(t)) for t in ((plan * cost).sum(), grad_x, grad_centers))


def loss_and_gradients(x, centers, *options, **named):
    leaves = [t.detach().clone().requires_grad_() for t in (x, centers)]
    loss = optimal_transport_loss(*leaves, *options, **named)
    return loss.detach(), *torch.autograd.grad(loss, leaves)


# --- codes and labels


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_codes_are_those_of_the_scores(shape, backend):
    x, _, prototypes = make_views(*shape)
    exact = exact_assign(x.double() @ prototypes.double().T)
    got = sinkhorn_assign_features(x, prototypes, backend=backend)
    assert got.dtype == torch.float32
    assert_not_worse_than_torch([(got, plain_assign(x @ prototypes.T), exact)], factor=2, dtype=torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_codes_in_every_dtype_with_marginals(dtype):
    x, _, prototypes = make_views(150, 30, 20, dtype)
    a, b = torch.rand(150) + 0.1, torch.rand(30) + 0.1
    b[3] = 0.0
    working = torch.float64 if dtype == torch.float64 else torch.float32
    scores = x.to(working) @ prototypes.to(working).T
    expected = sinkhorn_assign(scores.double(), 0.1, 5, a, b, backend="reference")
    got = sinkhorn_assign_features(x, prototypes, 0.1, 5, a, b)
    assert got.dtype == working
    assert (got - expected).abs().max() < (1e-12 if working == torch.float64 else 3e-6)
    assert torch.equal(got[:, 3], torch.zeros(150, dtype=working))


@pytest.mark.parametrize("backend", BACKENDS)
def test_labels_by_hand(backend):
    x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.8, 0.3], [0.7, 0.4]])
    found = optimal_transport_labels(x, torch.eye(2), epsilon=0.02, n_iters=200, backend=backend)
    assert found.labels.tolist() == [0, 0, 1, 1]  # without balance all belong to the first
    q = sinkhorn_assign(x, 0.02, 200, tol=0.01)
    assert torch.allclose(found.confidence, q.max(1).values, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_labels_are_the_largest_codes(shape):
    x, _, prototypes = make_views(*shape, torch.float64)
    for epsilon, tol in ((0.04, 0.01), (0.004, None)):
        q = sinkhorn_assign(x @ prototypes.T, epsilon, 20, tol=tol, backend="reference")
        found = optimal_transport_labels(x, prototypes, epsilon, 20, tol=tol)
        assert found.labels.dtype == torch.int64
        largest = q.max(1).values  # may be that of several columns: a row can take up two of them whole
        assert relative_error(q.gather(1, found.labels[:, None])[:, 0], largest) < 1e-10
        assert relative_error(found.confidence, largest) < 1e-10


def test_labels_are_balanced():
    x, _, prototypes = make_views(4000, 10, 16)
    x = x + 2 * prototypes[0]  # most rows lie near the first prototype
    counts = optimal_transport_labels(x, prototypes, 0.02, 1000, tol=1e-3).labels.bincount(minlength=10)
    assert (x @ prototypes.T).argmax(1).bincount().max() > 2000
    assert counts.min() > 360
    assert counts.max() < 440
    wanted = torch.arange(1.0, 11.0)
    counts = optimal_transport_labels(x, prototypes, 0.02, 1000, wanted, tol=1e-3).labels.bincount(minlength=10)
    assert (counts / 4000 - wanted / 55).abs().max() < 0.01


def test_ties_go_to_the_first_and_nan_is_not_hidden():
    x = torch.ones(70, 3)
    found = optimal_transport_labels(x, torch.ones(4, 3))
    assert torch.equal(found.labels, torch.zeros(70, dtype=torch.int64))
    assert torch.allclose(found.confidence, torch.full((70,), 0.25))
    x[5, 1] = math.nan
    assert optimal_transport_labels(x, torch.ones(4, 3)).confidence[5].isnan()


def test_T36_features_of_large_scores():
    x, _, prototypes = ((t * 16).round() / 16 for t in make_views(100, 40, 16))  # scores without rounding
    x = x * 8192
    q = sinkhorn_assign_features(x, prototypes, 1e-3)
    assert bool(torch.isfinite(q).all())
    assert (q.sum(1) - 1).abs().max() < 1e-5
    exact = sinkhorn_assign(x.double() @ prototypes.double().T, 1e-3, backend="reference")
    assert (q - exact).abs().max() < 3e-7
    found = optimal_transport_labels(x, prototypes, 1e-3, 3, tol=None)
    assert (found.confidence - exact.max(1).values).abs().max() < 3e-7


def test_T44_threads_and_strides_do_not_change_a_bit(set_threads):
    x, _, prototypes = make_views(1500, 70, 20)
    wide = torch.zeros(3000, 40)
    wide[::2, ::2] = x
    points, centers = make_clusters(1500, 30, 20)
    results = []
    for threads in (1, 2, 3):
        set_threads(threads)
        found = optimal_transport_labels(wide[::2, ::2], prototypes, n_iters=5)
        loss = loss_and_gradients(points, centers, 1.0, 5)
        results.append([sinkhorn_assign_features(x, prototypes), *found, *loss])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0]))


def test_memory_mapped_rows(tmp_path):
    x, _, prototypes = make_views(700, 12, 8)
    np.save(tmp_path / "x.npy", x.numpy())
    mapped = torch.from_numpy(np.load(tmp_path / "x.npy", mmap_mode="c"))
    expected = optimal_transport_labels(x, prototypes)
    assert torch.equal(optimal_transport_labels(mapped, prototypes).labels, expected.labels)


# --- the loss


@pytest.mark.parametrize("backend", BACKENDS)
def test_loss_by_hand(backend):
    x, centers = torch.tensor([[0.0], [1.0], [3.0], [4.0]]), torch.tensor([[0.5], [3.5]])
    loss, grad_x, grad_centers = loss_and_gradients(x, centers + 0.25, backend=backend)
    # halves of the rows move to each center: 3/4 and 1/4 away
    assert loss.item() == pytest.approx((0.75**2 + 0.25**2) / 2, rel=1e-4)
    assert torch.allclose(grad_x[:, 0], torch.tensor([-0.75, 0.25, -0.75, 0.25]) / 2, atol=1e-4)
    assert torch.allclose(grad_centers[:, 0], torch.full((2,), 0.25), atol=1e-4)


@pytest.mark.peers("ot")
def test_loss_is_pots():
    import ot

    x, centers = make_clusters(60, 8, 5, torch.float64)
    a, b = torch.rand(60, dtype=torch.float64) + 0.1, torch.rand(8, dtype=torch.float64) + 0.1
    cost = torch.cdist(x, centers).square().numpy()
    plan = ot.bregman.sinkhorn_log((a / a.sum()).numpy(), (b / b.sum()).numpy(), cost, 2.0, numItermax=7, stopThr=0)
    got = optimal_transport_loss(x, centers, 2.0, 7, a, b, tol=None)
    assert got.item() == pytest.approx((plan * cost).sum(), rel=1e-8)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("options", [(1.0, 20), (0.05, 3)], ids=str)
def test_loss_matches(shape, options):
    names, results = ("loss", "x", "centers"), []
    for seed in range(3):
        x, centers = make_clusters(*shape, seed=seed)
        exact = exact_loss(x, centers, *options)
        plain = loss_and_gradients(x, centers, *options, tol=None, backend="reference")
        got = loss_and_gradients(x, centers, *options, tol=None)
        results.append(list(zip(got, plain, exact)))
    for name, factor, cases in zip(names, (2, 3, 3), zip(*results)):
        assert_not_worse_than_torch(cases, factor=factor, dtype=torch.float32, name=name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_loss_in_every_dtype_with_marginals(dtype, backend):
    x, centers = make_clusters(90, 12, 20, dtype)
    a, b = torch.rand(90) + 0.1, torch.rand(12) + 0.1
    exact = exact_loss(x, centers, 2.0, 10, a, b)
    got = loss_and_gradients(x, centers, 2.0, 10, a, b, tol=None, backend=backend)
    assert [g.dtype for g in got[1:]] == [dtype] * 2
    allowed = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    assert all(relative_error(g, e) < allowed for g, e in zip(got, exact))


def test_gradient_is_that_of_the_entropic_objective():
    """Central differences of min <P, C> + epsilon sum P log P, at convergence."""
    x, centers = make_clusters(12, 3, 2, torch.float64)
    epsilon = 1.5

    def objective(x, centers):
        plan, cost = held_plan(x, centers, epsilon, 3000)
        return (plan * cost).sum() + epsilon * (plan * np.log(plan)).sum()

    _, *grads = loss_and_gradients(x, centers, epsilon, 3000, tol=None)
    for position, grad in enumerate(grads):
        for place in ((0, 0), (2, 1)):
            moved = []
            for sign in (1, -1):
                tensors = [x.clone(), centers.clone()]
                tensors[position][place] += sign * 1e-5
                moved.append(objective(*tensors))
            assert grad[place].item() == pytest.approx((moved[0] - moved[1]) / 2e-5, abs=1e-8)


def test_large_offset_and_equal_points():
    x, centers = make_clusters(200, 10, 20)
    x, centers = (x * 64).round() / 64, (centers * 64).round() / 64
    near, far = (loss_and_gradients(x + o, centers + o, 1.0, 10, tol=None) for o in (0.0, 1024.0))
    for a, b in zip(near, far):
        assert relative_error(b, a) < 1e-4
    same = loss_and_gradients(torch.ones(9, 20), torch.ones(4, 20))
    assert all(torch.equal(t, torch.zeros_like(t)) for t in same)


@pytest.mark.parametrize("tol", [None, 1e-2])
def test_what_is_held_does_not_matter(tol, monkeypatch):
    """Exponentials held between iterations, or made anew: by choice, by range, or since scalings have left float32."""
    x, _, prototypes = make_views(150, 70, 20)
    a, b = torch.rand(150) + 0.1, torch.rand(70)
    b[3] = 0.0
    codes = sinkhorn_assign_features(x, prototypes, 0.05, 5, a, b, tol)
    points, centers = make_clusters(150, 12, 20)
    costs = loss_and_gradients(points, centers, 3.0, 10, a, None, tol)
    patches = (
        (FeaturePasses, "is_bounded", lambda _: False),
        (numba_transport, "may_hold_tiles", lambda *_: False),
        (numba_held, "middle_of", lambda *_: None),
        (numba_scaling, "LEAST", 1e9),
    )
    for target, attribute, value in patches:
        with monkeypatch.context() as patch:
            patch.setattr(target, attribute, value)
            assert relative_error(sinkhorn_assign_features(x, prototypes, 0.05, 5, a, b, tol), codes) < 3e-6
            for got, expected in zip(loss_and_gradients(points, centers, 3.0, 10, a, None, tol), costs):
                assert relative_error(got, expected) < 3e-6


def test_chunks_of_plain_torch(monkeypatch):
    """What GPUs run, on the CPU, with chunks of a few rows."""
    monkeypatch.setattr(chunks, "ENTRIES", 100)
    x, _, prototypes = make_views(90, 12, 8, torch.float64)
    weight = torch.rand(90)
    marginals = Marginals(weight, None, (90, 12), "cpu")
    q = sinkhorn_assign(x @ prototypes.T, 0.05, 4, weight, backend="reference")
    assert torch.allclose(chunks.assign(x, prototypes, marginals, 0.05, 4, 0.0), q, rtol=1e-9)
    labels, confidence = chunks.label(x, prototypes, marginals, 0.05, 4, 0.0)
    assert torch.equal(labels, q.argmax(1))
    assert torch.allclose(confidence, q.max(1).values)
    x, centers = make_clusters(90, 12, 8, torch.float64)
    got = chunks.cost(x, centers, marginals, 1.0, 4, 0.0, [True, True])
    for a, b in zip(got, exact_loss(x, centers, 1.0, 4, weight)):
        assert relative_error(a, b) < 1e-12
    assert chunks.cost(x, centers, marginals, 1.0, 4, 0.0, [False, False])[1].shape == (0,)


# --- torch


def test_opcheck():
    x, _, prototypes = make_views(70, 6, 20)
    scalars = [0.05, 3.0, 0.0]
    torch.library.opcheck(transport_ops.ASSIGN["numba"], (x, prototypes, None, None, scalars))
    torch.library.opcheck(transport_ops.LABEL["numba"], (x, prototypes, torch.rand(70), None, scalars))
    tensors = [t.requires_grad_() for t in make_clusters(70, 6, 20)]
    torch.library.opcheck(transport_ops.COST["numba"], (*tensors, None, torch.rand(6), [1.0, 3.0, 0.0], [True, True]))


def test_compiles_into_one_graph():
    x, centers = make_clusters(70, 6, 20)

    def step(x, centers):
        labels, confidence = optimal_transport_labels(x * 1.0, centers)
        q = sinkhorn_assign_features(x * 1.0, centers)
        return optimal_transport_loss(x * 1.0, centers) + 0 * (labels.sum() + confidence.sum() + q.sum())

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    results = []
    for function in (step, compiled):
        leaves = [t.clone().requires_grad_() for t in (x, centers)]
        loss = function(*leaves)
        results.append((loss.detach(), *torch.autograd.grad(loss, leaves)))
    for a, b in zip(*results):
        assert torch.allclose(a, b, rtol=1e-6)


def test_second_derivatives_raise_and_gradients_only_where_needed():
    x, centers = make_clusters(70, 6, 20)
    x.requires_grad_()
    loss = optimal_transport_loss(x, centers)
    first = torch.autograd.grad(loss, x, retain_graph=True)[0].clone()
    assert torch.allclose(torch.autograd.grad(3 * loss, x)[0], 3 * first)
    (grad,) = torch.autograd.grad(optimal_transport_loss(x, centers), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        (grad.square().sum() + x.sum()).backward()
    with pytest.raises(NotImplementedError, match="has no rule"):
        torch.func.grad(lambda c: optimal_transport_loss(x.detach(), c))(centers)
    with torch.no_grad():
        assert not optimal_transport_loss(x, centers).requires_grad


def test_module_learns_sizes():
    torch.manual_seed(0)
    x = torch.cat([torch.randn(300, 2), torch.randn(100, 2) + 8])
    criterion = OptimalTransportLoss(torch.tensor([[3.0, 3.0], [4.0, 4.0]]), 1.0, column_marginal=torch.tensor([3, 1]))
    optimiser = torch.optim.SGD(criterion.parameters(), lr=0.5)
    for _ in range(30):
        optimiser.zero_grad()
        criterion(x).backward()
        optimiser.step()
    assert torch.allclose(criterion.centers.detach(), torch.stack([x[:300].mean(0), x[300:].mean(0)]), atol=0.1)
    assert set(criterion.state_dict()) == {"centers", "column_marginal"}


@pytest.mark.parametrize(
    ("function", "options", "error", "message"),
    [
        (sinkhorn_assign_features, dict(x=torch.zeros(3)), ValueError, r"x must be 2-D, of shape \(n_samples, n_feat"),
        (
            sinkhorn_assign_features,
            dict(centers=torch.zeros(2, 5)),
            ValueError,
            "prototypes has 5 features but x has 4",
        ),
        (
            sinkhorn_assign_features,
            dict(row_marginal=torch.ones(2)),
            ValueError,
            r"row_marginal must have shape \(3,\)",
        ),
        (optimal_transport_labels, dict(n_iters=0), ValueError, "n_iters must be an integer, 1 or above, got 0"),
        (optimal_transport_labels, dict(tol=0.0), ValueError, "tol must be a finite number above 0, got 0.0"),
        (optimal_transport_labels, dict(group=3), RuntimeError, "group needs torch.distributed"),
        (optimal_transport_loss, dict(epsilon=-1.0), ValueError, "epsilon must be a finite number above 0, got -1.0"),
        (optimal_transport_loss, dict(centers=[1.0]), TypeError, "centers must be a torch.Tensor, got list"),
        (
            optimal_transport_loss,
            dict(column_marginal=torch.ones(3)),
            ValueError,
            r"column_marginal must have shape \(2,\), one entry for each of the columns",
        ),
        (optimal_transport_loss, dict(backend="triton"), fastdc.BackendError, "triton kernels need GPU tensors"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_bad_input(function, options, error, message):
    options = {"x": torch.zeros(3, 4), "centers": torch.zeros(2, 4), **options}
    with pytest.raises(error, match=message):
        function(options.pop("x"), options.pop("centers"), **options)


@pytest.mark.slow
def test_labels_of_many_rows_in_little_memory(run_python):
    """Codes would be 4 GB; 36 bytes a row and 64 MB are allowed."""
    code = """
import resource, torch
from fastdc import optimal_transport_labels
unit = torch.nn.functional.normalize
def run(n, k):
    x = unit(torch.randn(n, 8))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    optimal_transport_labels(x, unit(torch.randn(k, 8)), n_iters=2, tol=None)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
run(100, 300)
print(run(1_000_000, 1000))
"""
    assert int(run_python(code)) < 36 * 1_000_000 + (64 << 20)
