"""The Student t room on CPUs; Triton's kernels have a file of their own."""

import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch

import fastdc
from fastdc.kernels import BackendError
from fastdc.kernels._accuracy import assert_not_worse_than_torch, relative_error
from fastdc.kernels.student_t import (
    StudentTStatistics,
    custom_ops,
    dec_loss,
    student_t_assign,
    student_t_statistics,
    target_distribution,
)

SHAPES = [(1, 1, 1), (7, 3, 5), (257, 10, 33), (320, 129, 64), (65, 20, 10), (300, 5, 17)]  # n, k, d
EXPONENTS = [(1.0, 2.0, 1.0), (2.5, 1.5, 0.5)]  # alpha, power, frequency_power
TARGETS = ["batch", "frequency", "given", "frozen"]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def name_shape(shape):
    return "N{}-K{}-D{}".format(*shape)


def make_points(n, k, d, dtype=torch.float32, offset=0.0, spread=0.7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(k, d, generator=generator) * 2
    rows = torch.randint(k, (n,), generator=generator)
    x = centers[rows] + torch.randn(n, d, generator=generator) * spread
    return (x + offset).to(dtype), (centers + offset).to(dtype)


def make_target(kind, x, centers, seed=1):
    generator = torch.Generator().manual_seed(seed)
    n, k = x.shape[0], centers.shape[0]
    frequency = torch.rand(k, generator=generator, dtype=torch.float64) + 0.1
    if kind == "frequency":
        return {"frequency": frequency}
    if kind == "given":
        return {"target": torch.rand(n, k, generator=generator).softmax(1).to(x.dtype)}
    if kind == "frozen":
        moved = x + 0.1 * torch.randn(x.shape, generator=generator).to(x.dtype)
        return {"target_x": moved, "target_centers": centers + 0.1, "frequency": frequency}
    return {}


def loss_and_gradients(x, centers, backend, **options):
    x, centers = x.detach().requires_grad_(), centers.detach().requires_grad_()
    loss = dec_loss(x, centers, backend=backend, **options)
    loss.backward()
    return loss.detach(), x.grad, centers.grad


def in_float64(options):
    return {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in options.items()}


def check_loss(make_case, dtype=torch.float32, seeds=4):
    """Loss and both gradients of ``make_case(seed) -> x, centers, options`` against torch's, over several draws."""
    results = []
    for seed in range(seeds):
        x, centers, options = make_case(seed)
        truth = loss_and_gradients(x.double(), centers.double(), "reference", **in_float64(options))
        plain = loss_and_gradients(x, centers, "reference", **options)
        got = loss_and_gradients(x, centers, "numba", **options)
        results.append(list(zip(got, plain, truth)))
    for name, factor, cases in zip(("loss", "x", "centers"), (2, 3, 3), zip(*results)):
        assert_not_worse_than_torch(cases, factor=factor, dtype=dtype, name=name)


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


# --- autograd, compilation


def test_gradients_are_computed_only_where_needed(monkeypatch):
    x, centers = make_points(100, 6, 20)
    flags = []
    original = custom_ops.DEC_LOSS["numba"]
    monkeypatch.setitem(custom_ops.DEC_LOSS, "numba", lambda *args: (flags.append(args[-2:]), original(*args))[1])
    dec_loss(x.requires_grad_(), centers).backward()
    dec_loss(x.detach(), centers.requires_grad_()).backward()
    with torch.no_grad():
        dec_loss(x, centers)
    assert flags == [(True, False), (False, True), (False, False)]


def test_retain_graph_gives_the_same_gradients_again():
    x, centers = make_points(100, 6, 20)
    x.requires_grad_()
    loss = dec_loss(x, centers)
    first = torch.autograd.grad(loss, x, retain_graph=True)[0]
    copy = first.clone()
    second = torch.autograd.grad(3 * loss, x)[0]
    assert torch.equal(first, copy)
    assert torch.allclose(second, 3 * first)


def test_second_derivatives_raise():
    x, centers = make_points(20, 3, 4)
    x.requires_grad_()
    (grad,) = torch.autograd.grad(dec_loss(x, centers), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        (grad.square().sum() + x.sum()).backward()


@pytest.mark.parametrize("op", [dec_loss, student_t_assign], ids=lambda f: f.__name__)
def test_transforms_without_a_rule_raise(op):
    x, centers = make_points(20, 3, 4)
    with pytest.raises(NotImplementedError, match="has no rule"):
        torch.func.grad(lambda x: op(x, centers).sum())(x)
    with pytest.raises(NotImplementedError, match="has no rule"):
        torch.func.jvp(lambda x: op(x, centers), (x,), (torch.ones_like(x),))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap():
    _, centers = make_points(20, 3, 4)
    batch = torch.randn(3, 20, 4)
    losses = torch.func.vmap(lambda x: dec_loss(x, centers))(batch)
    assert torch.allclose(losses, torch.stack([dec_loss(x, centers) for x in batch]))


def test_opcheck():
    x, centers = make_points(70, 6, 20)
    x.requires_grad_(), centers.requires_grad_()
    frequency = torch.rand(6) + 1
    scalars = [1.0, 2.0, 1.0, 70.0]
    for target in ((None, None, None, None), (None, x.detach(), centers.detach(), frequency)):
        torch.library.opcheck(custom_ops.DEC_LOSS["numba"], (x, centers, *target, scalars, "ieee", True, True))
    torch.library.opcheck(custom_ops.ASSIGN["numba"], (x, centers, 1.0, "ieee"))
    torch.library.opcheck(custom_ops.STATISTICS["numba"], (x.detach(), centers.detach(), 1.0, None, "ieee"))
    torch.library.opcheck(custom_ops.TARGET["numba"], (torch.rand(9, 6), frequency, 2.0, 1.0))


def test_compiles_into_one_graph():
    x, centers = make_points(150, 6, 20)

    def training_loss(x, centers):
        labels = student_t_statistics(x, centers).labels
        return dec_loss(x * 1.0, centers) + student_t_assign(x, centers).square().mean() + 0.0 * labels.sum()

    compiled = torch.compile(training_loss, fullgraph=True, backend="aot_eager", dynamic=True)
    gradients = []
    for function in (training_loss, compiled):
        a, b = x.clone().requires_grad_(), centers.clone().requires_grad_()
        function(a, b).backward()
        gradients.append((a.grad, b.grad))
    for eager, graph in zip(*gradients):
        assert torch.allclose(eager, graph, rtol=1e-6)


def test_backend_switch_recompiles():
    x, centers = make_points(50, 3, 4)
    compiled = torch.compile(lambda x, c: dec_loss(x, c), fullgraph=True, backend="eager")
    first = compiled(x, centers)
    with fastdc.use_backend("reference"):
        second = compiled(x, centers)
    assert torch.allclose(first, second, rtol=1e-5)


def test_autocast_and_loss_scale():
    x, centers = make_points(100, 6, 20)
    weight = torch.eye(20, requires_grad=True)
    centers.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        z = x @ weight
        loss = dec_loss(z, centers)
    assert z.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    (loss * 65536.0).backward()
    assert weight.grad.dtype == centers.grad.dtype == torch.float32
    _, _, exact = loss_and_gradients(z.detach().float(), centers, "reference")
    assert relative_error(centers.grad / 65536.0, exact) < 1e-5


def test_half_gradients_do_not_vanish_in_large_batches():
    x, centers = make_points(20000, 4, 6, torch.float16)
    x.requires_grad_()
    (dec_loss(x, centers) * 65536.0).backward()
    _, exact, _ = loss_and_gradients(x.detach().double(), centers.double(), "reference")
    assert relative_error(x.grad.double() / 65536.0, exact) < 1e-3


# --- inputs that must be answered


@pytest.mark.parametrize("d", [3, 20])
def test_T38_extreme_distances_and_alpha(d):
    x = torch.zeros(4, d)
    x[1, 0], x[2, 0], x[3, 0] = 1e10, 1e20, 3.0
    centers = torch.zeros(2, d)
    centers[1, 0] = 3.0
    for alpha in (1.0, 1e-3, 50.0):
        loss, grad_x, grad_centers = loss_and_gradients(x, centers, "numba", alpha=alpha)
        q = student_t_assign(x, centers, alpha)
        assert all(bool(torch.isfinite(t).all()) for t in (loss, grad_x, grad_centers, q))
        assert torch.allclose(q.sum(1), torch.ones(4))
        assert q[0, 0] > 0.5


def test_T38_a_cluster_without_mass_gets_no_target():
    q = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.75, 0.0]])
    for backend in ("reference", "numba"):
        p = target_distribution(q, backend=backend)
        assert torch.equal(p[:, 2], torch.zeros(2))
        assert bool(torch.isfinite(p).all())
    x, centers = make_points(30, 3, 4)
    loss, *gradients = loss_and_gradients(x, centers, "numba", frequency=torch.tensor([1.0, 0.0, 2.0]))
    assert all(bool(torch.isfinite(t).all()) for t in (loss, *gradients))


@pytest.mark.parametrize("d", [4, 20])
def test_T03_a_row_with_nan(d):
    x, centers = make_points(100, 5, d)
    clean = student_t_statistics(torch.cat([x[:7], x[8:]]), centers)
    x[7, 1] = float("nan")
    for backend in ("reference", "numba"):
        dirty = student_t_statistics(x, centers, backend=backend)
        assert dirty.labels[7] == -1
        assert torch.allclose(dirty.frequency, clean.frequency, rtol=1e-5)
        for target in TARGETS:
            assert torch.isnan(dec_loss(x, centers, backend=backend, **make_target(target, *make_points(100, 5, d))))
    with pytest.raises(ValueError, match=r"Input x contains NaN: 1 such entries, the first at index \[7, 1\]"):
        dec_loss(x, centers, check_finite=True)


def test_T19_ties_go_to_the_lowest_index():
    centers = torch.tensor([[1.0], [-1.0], [1.0]])
    for backend in ("reference", "numba"):
        assert student_t_statistics(torch.zeros(70, 1), centers, backend=backend).labels.unique().tolist() == [0]


def test_poisoned_memory(monkeypatch):
    """Every element of a result is written: uninitialised memory is filled with NaN here."""
    original = np.empty

    def poisoned(shape, dtype=float, **options):
        array = original(shape, dtype, **options)
        if array.dtype.kind == "f":
            array.fill(np.nan)
        return array

    monkeypatch.setattr(np, "empty", poisoned)
    for d in (5, 20):
        x, centers = make_points(131, 7, d)
        tensors = [
            student_t_assign(x, centers),
            *student_t_statistics(x, centers),
            *loss_and_gradients(x, centers, "numba"),
        ]
        assert all(bool(torch.isfinite(t).all()) for t in tensors)


BAD = [
    (dict(x=np.zeros((3, 2))), TypeError, "x must be a torch.Tensor, got ndarray"),
    (
        dict(x=torch.zeros(3)),
        ValueError,
        r"x must be 2-D, of shape \(n_samples, n_features\), got shape \(3,\)",
    ),
    (
        dict(x=torch.zeros(3, 2, dtype=torch.int64)),
        TypeError,
        "x must be float32, float64, float16 or bfloat16",
    ),
    (dict(x=torch.zeros(0, 2)), ValueError, r"x is empty, shape \(0, 2\)"),
    (dict(x=torch.zeros(3, 0)), ValueError, "x is empty"),
    (
        dict(centers=torch.zeros(2, 3)),
        ValueError,
        r"centers has 3 features but x has 2; both must be \(…, n_features\)",
    ),
    (dict(centers=torch.zeros(2, 2, device="meta")), ValueError, "centers is on meta but x is on cpu"),
    (dict(alpha=0.0), ValueError, "alpha must be a finite number above 0, got 0.0"),
    (dict(power=-1.0), ValueError, "power must be a finite number above 0"),
    (dict(frequency_power=-1.0), ValueError, "frequency_power must be a finite number, 0 or above"),
    (dict(reduction="none"), ValueError, "reduction must be one of"),
    (dict(frequency=torch.ones(3)), ValueError, r"frequency must have shape \(2,\)"),
    (dict(target=torch.ones(3, 3)), ValueError, r"target must have shape \(3, 2\)"),
    (dict(target=torch.ones(3, 2), frequency=torch.ones(2)), ValueError, "target is P itself"),
    (dict(target_x=torch.ones(3, 2)), ValueError, "target_x, target_centers and frequency go together"),
    (
        dict(target_x=torch.ones(4, 2), target_centers=torch.ones(2, 2), frequency=torch.ones(2)),
        ValueError,
        "target_x has 4 rows but x has 3",
    ),
    (dict(backend="cuda"), ValueError, "backend must be one of"),
    (dict(backend="triton"), BackendError, "triton kernels need GPU tensors"),
    (dict(precision="tf32"), ValueError, "precision 'tf32' needs the triton backend"),
    (dict(precision="fp8"), ValueError, "precision must be one of"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD, ids=lambda v: v if isinstance(v, str) else "")
def test_bad_input(options, error, message):
    arguments = {"x": torch.zeros(3, 2), "centers": torch.zeros(2, 2), **options}
    with pytest.raises(error, match=message):
        dec_loss(arguments.pop("x"), arguments.pop("centers"), **arguments)


def test_previous_labels_are_checked():
    x, centers = make_points(5, 2, 2)
    with pytest.raises(TypeError, match="previous_labels must be int64"):
        student_t_statistics(x, centers, 1.0, torch.zeros(5))
    with pytest.raises(ValueError, match=r"previous_labels must have shape \(5,\)"):
        student_t_statistics(x, centers, 1.0, torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match="at least one chunk"):
        StudentTStatistics.merge([])


def test_T25_inference_mode_and_detached_results():
    x, centers = make_points(20, 3, 4)
    with torch.inference_mode():
        assert dec_loss(x, centers).isfinite()
    assert not student_t_statistics(x.requires_grad_(), centers).confidence.requires_grad
    assert not target_distribution(student_t_assign(x, centers)).requires_grad


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
