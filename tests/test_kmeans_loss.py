"""The k-means loss, hard (DCN) and soft (DKM), with its gradients."""

import pytest
import torch

from fastdc import kmeans_loss, nearest_center
from fastdc.kernels._accuracy import assert_not_worse_than_torch, relative_error
from fastdc.kernels.kmeans import loss_ops
from fastdc.losses import KMeansLoss

BACKENDS = ["reference", "numba"]
SHAPES = [(1, 1, 1), (7, 3, 5), (257, 10, 33), (320, 129, 64), (300, 5, 17)]  # n, k, d
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
OPTIONS = [{}, {"mode": "soft"}, {"mode": "soft", "temperature": 20.0}]


def make_points(n, k, d, dtype=torch.float32, offset=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(k, d, generator=generator)
    x = centers[torch.randint(k, (n,), generator=generator)] + 0.7 * torch.randn(n, d, generator=generator)
    return (x + offset).to(dtype), (centers + offset).to(dtype)


def loss_and_gradients(x, centers, backend, **options):
    x, centers = x.detach().requires_grad_(), centers.detach().requires_grad_()
    loss = kmeans_loss(x, centers, backend=backend, **options)
    loss.backward()
    return loss.detach(), x.grad, centers.grad


def check(make_case, dtype=torch.float32, seeds=3):
    results = []
    for seed in range(seeds):
        x, centers, options = make_case(seed)
        if options.get("mode") != "soft" and "labels" not in options:  # so that the truth takes the same centers
            options = {**options, "labels": nearest_center(x, centers).labels}
        truth = loss_and_gradients(x.double(), centers.double(), "reference", **options)
        plain = loss_and_gradients(x, centers, "reference", **options)
        got = loss_and_gradients(x, centers, "numba", **options)
        assert [t.dtype for t in got] == [t.dtype for t in plain]
        if dtype == torch.float64:  # plain torch is the truth then, and as far from it as we may be
            assert all(relative_error(*pair) < 1e-14 for pair in zip(got, truth))
            return
        results.append(list(zip(got, plain, truth)))
    for name, factor, cases in zip(("loss", "x", "centers"), (2, 3, 3), zip(*results)):
        assert_not_worse_than_torch(cases, factor=factor, dtype=dtype, name=name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend):
    x, centers = torch.tensor([[0.0], [3.0]]), torch.tensor([[1.0], [5.0]])
    loss, grad_x, grad_centers = loss_and_gradients(x, centers, backend)
    assert (loss.item(), grad_x.tolist(), grad_centers.tolist()) == (2.5, [[-1.0], [2.0]], [[-1.0], [0.0]])
    given = {"labels": torch.tensor([1, -1])}
    loss, grad_x, grad_centers = loss_and_gradients(x, centers, backend, **given)
    assert (loss.item(), grad_x.tolist(), grad_centers.tolist()) == (12.5, [[-5.0], [0.0]], [[0.0], [5.0]])
    soft = kmeans_loss(x[:1], centers, mode="soft", temperature=24.0, backend=backend)
    weight = torch.tensor(1.0).exp() / (1 + torch.tensor(1.0).exp())  # squared distances 1 and 25
    assert soft.item() == pytest.approx((weight + 25 * (1 - weight)).item(), rel=1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_as_accurate_as_torch(shape, dtype, options):
    check(lambda seed: (*make_points(*shape, dtype, seed=seed), options), dtype)


@pytest.mark.parametrize("options", [*OPTIONS, {"labels": torch.tensor([0, 2, -1, 1, 1, 0])}], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_T39_gradcheck(options, backend):
    x, centers = make_points(6, 3, 4, torch.float64)
    inputs = (x.requires_grad_(), centers.requires_grad_())
    assert torch.autograd.gradcheck(lambda x, c: kmeans_loss(x, c, backend=backend, **options), inputs)


def test_soft_gradient_includes_the_weights():
    x, centers = make_points(50, 4, 6, torch.float64)
    sq_dists = (x[:, None] - centers).square().sum(2)
    w = (-sq_dists / 2.0).softmax(1)
    slope = w * (1 - (sq_dists - (w * sq_dists).sum(1, keepdim=True)) / 2.0) / 50
    expected = 2 * (slope.sum(1, keepdim=True) * x - slope @ centers)
    _, grad_x, _ = loss_and_gradients(x, centers, "numba", mode="soft", temperature=2.0)
    assert torch.allclose(grad_x, expected, rtol=1e-10)


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e30])
def test_soft_loss_at_the_ends(temperature):
    x, centers = make_points(100, 7, 9)
    soft = kmeans_loss(x, centers, mode="soft", temperature=temperature)
    mean = (x[:, None] - centers).square().sum(2).mean()
    assert soft.item() == pytest.approx((kmeans_loss(x, centers) if temperature < 1 else mean).item(), rel=1e-4)


@pytest.mark.parametrize("options", OPTIONS[:2], ids=str)
@pytest.mark.parametrize("d", [6, 40])
def test_T15_large_offset(options, d):
    check(lambda seed: (*make_points(300, 12, d, offset=1e4, seed=seed), options))


@pytest.mark.parametrize("options", OPTIONS[:2], ids=str)
@pytest.mark.parametrize("d", [6, 20])
def test_rows_on_centers_and_duplicate_centers(options, d):
    x, centers = make_points(130, 20, d)
    centers[3] = centers[5]
    x[:40] = centers[torch.arange(40) % 8]
    check(lambda seed: (x, centers, options), seeds=1)


@pytest.mark.parametrize("options", OPTIONS[:2], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("d", [4, 20])
def test_T03_a_row_with_nan_is_heard(options, backend, d):
    x, centers = make_points(70, 5, d)
    x[3, 1] = torch.nan
    assert kmeans_loss(x, centers, backend=backend, **options).isnan()
    x[3, 1] = torch.inf
    assert not kmeans_loss(x, centers, backend=backend, **options).isfinite()


@pytest.mark.parametrize("options", OPTIONS[:2], ids=str)
def test_a_center_far_away_takes_no_part(options):
    x, centers = make_points(70, 5, 20)
    far = torch.cat([centers, torch.full((1, 20), 1e19)])
    got, expected = (loss_and_gradients(x, c, "numba", **options) for c in (far, centers))
    assert torch.allclose(got[0], expected[0])
    assert torch.allclose(got[1], expected[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", OPTIONS[:2], ids=str)
def test_T44_threads_and_strides_do_not_change_a_bit(options):
    x, centers = make_points(5000, 30, 21)
    expected = loss_and_gradients(x, centers, "numba", **options)
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(loss_and_gradients(x, centers, "numba", **options), expected))
    wide = torch.zeros(10_000, 42)
    wide[::2, ::2] = x
    strided = loss_and_gradients(wide[::2, ::2], centers, "numba", **options)
    assert all(torch.equal(a, b) for a, b in zip(strided, expected))


def test_T16_half_gradients_do_not_vanish_in_large_batches():
    x, centers = make_points(20_000, 4, 6, torch.float16)
    for options in OPTIONS[:2]:
        leaf = x.clone().requires_grad_()
        (kmeans_loss(leaf, centers, **options) * 65536.0).backward()
        _, exact, _ = loss_and_gradients(x.double(), centers.double(), "reference", **options)
        assert relative_error(leaf.grad.double() / 65536.0, exact) < 1e-3


def test_no_matrix_of_rows_and_centers(run_python):
    """It would take 1 GB here, as float32."""
    grown = run_python(
        "import resource, torch\n"
        "from fastdc import kmeans_loss\n"
        "x, c = torch.randn(50_000, 4, requires_grad=True), torch.randn(5000, 4, requires_grad=True)\n"
        "kmeans_loss(x[:100], c, mode='soft').backward()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "kmeans_loss(x, c, mode='soft').backward()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    assert int(grown) < 48 * 1024  # kB


# --- autograd, compilation, the module


def test_gradients_are_computed_only_where_needed():
    x, centers = make_points(100, 6, 20)
    for options in OPTIONS[:2]:
        both = loss_and_gradients(x, centers, "numba", **options)
        leaf = x.clone().requires_grad_()
        assert torch.equal(torch.autograd.grad(kmeans_loss(leaf, centers, **options), leaf)[0], both[1])
        leaf = centers.clone().requires_grad_()
        assert torch.equal(torch.autograd.grad(kmeans_loss(x, leaf, **options), leaf)[0], both[2])
        assert torch.equal(kmeans_loss(x, centers, **options), both[0])


def test_second_derivatives_and_transforms_raise():
    x, centers = make_points(20, 3, 4)
    x.requires_grad_()
    (grad,) = torch.autograd.grad(kmeans_loss(x, centers, mode="soft"), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        (grad.square().sum() + x.sum()).backward()
    with pytest.raises(NotImplementedError, match="has no rule"):
        torch.func.grad(lambda x: kmeans_loss(x, centers))(x)


def test_opcheck():
    x, centers = make_points(70, 6, 20)
    x.requires_grad_(), centers.requires_grad_()
    for labels, temperature in ((None, None), (torch.zeros(70, dtype=torch.int64), None), (None, 2.0)):
        arguments = (x, centers, labels, temperature, "ieee", True, True)
        torch.library.opcheck(loss_ops.LOSS["numba"], arguments)


def test_compiles_into_one_graph():
    x, centers = make_points(150, 6, 20)

    def training_loss(x, centers):
        return kmeans_loss(x * 1.0, centers) + kmeans_loss(x, centers, mode="soft")

    compiled = torch.compile(training_loss, fullgraph=True, backend="aot_eager", dynamic=True)
    gradients = []
    for function in (training_loss, compiled):
        a, b = x.clone().requires_grad_(), centers.clone().requires_grad_()
        function(a, b).backward()
        gradients.append((a.grad, b.grad))
    for eager, graph in zip(*gradients):
        assert torch.allclose(eager, graph, rtol=1e-6)


def test_module():
    x, centers = make_points(40, 3, 4)
    criterion = KMeansLoss(centers, mode="soft", temperature=0.5)
    loss = criterion(x)
    loss.backward()
    assert torch.equal(loss, kmeans_loss(x, centers, mode="soft", temperature=0.5))
    assert criterion.centers.grad.shape == centers.shape
    labels = torch.zeros(40, dtype=torch.int64)
    assert torch.equal(KMeansLoss(centers)(x, labels), kmeans_loss(x, centers, labels))


BAD = [
    (dict(centers=torch.zeros(2, 3)), ValueError, "centers has 3 features but x has 2"),
    (dict(labels=torch.zeros(3)), TypeError, "labels must be int64, got torch.float32"),
    (dict(labels=torch.zeros(2).long()), ValueError, r"labels must have shape \(3,\)"),
    (dict(labels=torch.tensor([0, 2, 1])), ValueError, "labels holds 2, but there are 2 centers, numbered from 0"),
    (dict(labels=torch.zeros(3).long(), mode="soft"), ValueError, "labels are of the hard loss; leave them out"),
    (dict(mode="firm"), ValueError, r"mode must be one of \('hard', 'soft'\), got 'firm'"),
    (dict(temperature=0.0), ValueError, "temperature must be a finite number above 0, got 0.0"),
    (dict(backend="cuda"), ValueError, "backend must be one of"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD, ids=lambda v: v if isinstance(v, str) else "")
def test_bad_input(options, error, message):
    arguments = {"x": torch.zeros(3, 2), "centers": torch.zeros(2, 2), **options}
    with pytest.raises(error, match=message):
        kmeans_loss(**arguments)
