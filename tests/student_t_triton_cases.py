"""Values and gradients of the GPU kernels; run by ``test_student_t_triton.py`` in a process of its own.

With TRITON_INTERPRET=1 tensors stay on the CPU, and products have no precision but float32's; the interpreter
multiplies no bfloat16.
"""

import os

import pytest
import torch

from fastdc.kernels._accuracy import assert_not_worse_than_torch, relative_error
from fastdc.kernels.student_t import dec_loss, student_t_assign, student_t_statistics, target_distribution

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
SHAPES = [(1, 1, 1), (7, 3, 5), (140, 10, 33), (70, 37, 40)]  # n, k, d
TARGETS = ["batch", "frequency", "given", "frozen"]
BY_DIFFERENCES, BY_PRODUCTS = "ieee", "tf32x3"

# the interpreter's numpy warns where a GPU is silent: logarithms of zero, and distances beyond the last row
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def name_shape(shape):
    return "N{}-K{}-D{}".format(*shape)


def make_points(n, k, d, dtype=torch.float32, offset=0.0, spread=0.7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(k, d, generator=generator) * 2
    rows = torch.randint(k, (n,), generator=generator)
    x = centers[rows] + torch.randn(n, d, generator=generator) * spread
    return (x + offset).to(DEVICE, dtype), (centers + offset).to(DEVICE, dtype)


def make_target(kind, x, centers):
    frequency = torch.rand(len(centers), dtype=torch.float64, device=DEVICE) + 0.1
    if kind == "frequency":
        return {"frequency": frequency}
    if kind == "given":
        return {"target": torch.rand(len(x), len(centers), device=DEVICE).to(x.dtype)}  # rows of any sum
    if kind == "frozen":
        return {"target_x": x + 0.1 * torch.randn_like(x), "target_centers": centers + 0.1, "frequency": frequency}
    return {}


def loss_and_gradients(x, centers, backend="triton", **options):
    x, centers = x.detach().requires_grad_(), centers.detach().requires_grad_()
    loss = dec_loss(x, centers, backend=backend, **options)
    loss.backward()
    return loss.detach(), x.grad, centers.grad


def assign_and_gradients(x, centers, grad_q, backend="triton", **options):
    x, centers = x.detach().requires_grad_(), centers.detach().requires_grad_()
    q = student_t_assign(x, centers, backend=backend, **options)
    q.backward(grad_q)
    return q.detach(), x.grad, centers.grad


def check(function, x, *others, precision, **options):
    """Value and both gradients against those of torch, for ``function(x, ..., backend)``."""
    exact = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    truth = function(x.double(), *(t.double() for t in others), "reference", **exact)
    plain = function(x, *others, "reference", **options)
    got = function(x, *others, precision=precision, **options)
    for name, factor, case in zip(("value", "x", "centers"), (2, 3, 3), zip(got, plain, truth)):
        assert case[0].dtype == case[1].dtype
        try:
            assert_not_worse_than_torch([case], factor=factor, dtype=x.dtype)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


@pytest.mark.parametrize("shape", SHAPES, ids=name_shape)
@pytest.mark.parametrize("precision", [BY_DIFFERENCES, BY_PRODUCTS])
@pytest.mark.parametrize("alpha", [1.0, 2.5])
def test_assign_matches(shape, precision, alpha):
    x, centers = make_points(*shape)
    grad_q = torch.randn(shape[0], shape[1], device=DEVICE)
    check(assign_and_gradients, x, centers, grad_q, precision=precision, alpha=alpha)


@pytest.mark.parametrize("shape", SHAPES, ids=name_shape)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("precision", [BY_DIFFERENCES, BY_PRODUCTS])
def test_loss_matches(shape, target, precision):
    x, centers = make_points(*shape)
    general = target in ("batch", "frozen") and shape[0] != 140
    exponents = {"alpha": 2.5, "power": 1.5, "frequency_power": 0.5} if general else {}
    check(loss_and_gradients, x, centers, precision=precision, **make_target(target, x, centers), **exponents)


@pytest.mark.parametrize("precision", [BY_DIFFERENCES, BY_PRODUCTS])
@pytest.mark.parametrize("spread", [0.7, 0.01], ids=["wide", "tight"])
def test_large_offset(precision, spread):
    x, centers = make_points(70, 20, 40, offset=1e4, spread=spread)
    check(loss_and_gradients, x, centers, precision=precision)


@pytest.mark.parametrize("d", [6, 20])
def test_distance_zero_and_duplicate_centers(d):
    x, centers = make_points(130, 20, d)
    centers[3] = centers[5]
    x[:40] = centers[torch.arange(40) % 8]
    check(loss_and_gradients, x, centers, precision=BY_PRODUCTS)
    q = student_t_assign(x, centers, backend="triton", precision=BY_PRODUCTS)
    assert torch.equal(q[:, 3], q[:, 5])


@pytest.mark.parametrize(
    ("dtype", "precision"), [(torch.float16, BY_PRODUCTS), (torch.bfloat16, BY_DIFFERENCES)], ids=str
)
def test_half_inputs_of_any_strides(dtype, precision):
    x, centers = make_points(70, 9, 24, dtype)
    wide = torch.zeros(140, 48, dtype=dtype, device=DEVICE)
    wide[::2, ::2] = x
    options = make_target("frozen", x, centers)
    check(loss_and_gradients, wide[::2, ::2], centers.t().contiguous().t(), precision=precision, **options)
    contiguous = loss_and_gradients(x, centers, precision=precision, **options)
    strided = loss_and_gradients(wide[::2, ::2], centers, precision=precision, **options)
    assert all(torch.equal(a, b) for a, b in zip(contiguous, strided))


def test_points_and_centers_of_different_dtypes():
    x, centers = make_points(40, 5, 8)
    loss, grad_x, grad_centers = loss_and_gradients(x.half(), centers)
    assert (loss.dtype, grad_x.dtype, grad_centers.dtype) == (torch.float32, torch.float16, torch.float32)
    assert relative_error(loss, loss_and_gradients(x.half().float(), centers)[0]) < 1e-6


@pytest.mark.parametrize("precision", ["tf32"] if DEVICE == "cpu" else ["tf32", "bf16"])
def test_reduced_precisions_are_close(precision):
    x, centers = make_points(70, 10, 20)
    reduced = loss_and_gradients(x, centers, precision=precision)
    for got, exact in zip(reduced, loss_and_gradients(x, centers, precision=BY_DIFFERENCES)):
        assert relative_error(got, exact) < 0.1


def test_gradcheck():
    x, centers = make_points(3, 2, 2, torch.float64, spread=1.5)
    options = make_target("frozen", x, centers)
    inputs = (x.requires_grad_(), centers.requires_grad_())
    assert torch.autograd.gradcheck(lambda x, c: dec_loss(x, c, alpha=1.7, backend="triton", **options), inputs)
    assert torch.autograd.gradcheck(lambda x, c: student_t_assign(x, c, 1.7, backend="triton"), inputs)


@pytest.mark.parametrize("target", TARGETS)
def test_float64_stays_float64(target):
    x, centers = make_points(70, 20, 18, torch.float64)
    options = {**make_target(target, x, centers), "alpha": 1.7, "power": 1.3}
    for got, exact in zip(*(loss_and_gradients(x, centers, b, **options) for b in ("triton", "reference"))):
        assert got.dtype == torch.float64
        assert relative_error(got, exact) < 1e-12


@pytest.mark.parametrize("shape", [(1, 1, 1), (140, 10, 33), (130, 80, 6)], ids=name_shape)
@pytest.mark.parametrize("alpha", [1.0, 2.5])
def test_statistics_match(shape, alpha):
    x, centers = make_points(*shape)
    previous = torch.zeros(shape[0], dtype=torch.int64, device=DEVICE)
    truth = student_t_statistics(x.double(), centers.double(), alpha, previous, backend="reference")
    for precision in (BY_DIFFERENCES, BY_PRODUCTS):
        got = student_t_statistics(x, centers, alpha, previous, backend="triton", precision=precision)
        assert torch.equal(got.labels, truth.labels)
        assert torch.equal(got.n_changed, truth.n_changed)
        assert got.frequency.dtype == torch.float64
        for name in ("confidence", "frequency", "entropy"):
            error = (getattr(got, name) - getattr(truth, name)).abs().max()
            assert error < 2e-6 * max(1.0, float(getattr(truth, name).max())), name


def test_labels_of_ties_and_of_rows_with_nan():
    x, centers = make_points(20, 35, 18)
    centers[33] = centers[2]
    x[5] = centers[2]
    x[7, 3] = float("nan")
    for precision in (BY_DIFFERENCES, BY_PRODUCTS):
        got = student_t_statistics(x, centers, backend="triton", precision=precision)
        assert got.labels[5] == 2
        assert got.labels[7] == -1
        assert torch.allclose(got.frequency.sum(), got.frequency.new_tensor(19.0))
        loss, grad_x, _ = loss_and_gradients(x, centers, precision=precision)
        assert loss.isnan()
        assert grad_x[7].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("power", "frequency_power"), [(2.0, 1.0), (1.5, 0.5)])
def test_target_distribution_matches(dtype, power, frequency_power):
    q = torch.rand(90, 150, device=DEVICE).softmax(1).to(dtype).t().contiguous().t()
    frequency = torch.rand(150, dtype=torch.float64, device=DEVICE)
    frequency[4] = 0.0
    for f in (None, frequency):
        truth = target_distribution(q.double(), f, power, frequency_power, backend="reference")
        plain = target_distribution(q, f, power, frequency_power, backend="reference")
        got = target_distribution(q, f, power, frequency_power, backend="triton")
        assert got.dtype == dtype
        assert_not_worse_than_torch([(got, plain, truth)], factor=2, dtype=dtype)
    assert (got[:, 4] == 0).all()


def test_only_the_gradients_asked_for():
    x, centers = make_points(70, 5, 20)
    _, grad_x, grad_centers = loss_and_gradients(x, centers)
    leaf = x.clone().requires_grad_()
    dec_loss(leaf, centers, backend="triton").backward()
    assert torch.equal(leaf.grad, grad_x)
    leaf = centers.clone().requires_grad_()
    dec_loss(x, leaf, backend="triton").backward()
    assert torch.equal(leaf.grad, grad_centers)


def test_same_bits_again():
    x, centers = make_points(300, 20, 20)
    first, second = (loss_and_gradients(x, centers) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))
