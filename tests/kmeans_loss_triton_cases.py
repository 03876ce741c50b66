"""The GPU kernels of the k-means loss against plain torch. Run by test_kmeans_loss_triton.py, with the interpreter."""

import os

import pytest
import torch

from fastdc.kernels._accuracy import assert_not_worse_than_torch, relative_error
from fastdc.kernels.kmeans import kmeans_loss, loss_ops

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
SHAPES = [(1, 1, 1), (7, 3, 5), (140, 10, 33), (70, 37, 40)]  # n, k, d
BY_DIFFERENCES, BY_PRODUCTS = "ieee", "tf32x3"
OPTIONS = [{}, {"mode": "soft", "temperature": 5.0}]

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter computes with numpy


def make_points(n, k, d, dtype=torch.float32, offset=0.0):
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(k, d, generator=generator)
    x = centers[torch.randint(k, (n,), generator=generator)] + 0.7 * torch.randn(n, d, generator=generator)
    return (x + offset).to(DEVICE, dtype), (centers + offset).to(DEVICE, dtype)


def loss_and_gradients(x, centers, backend="triton", **options):
    x, centers = x.detach().requires_grad_(), centers.detach().requires_grad_()
    loss = kmeans_loss(x, centers, backend=backend, **options)
    loss.backward()
    return loss.detach(), x.grad, centers.grad


def check(x, centers, precision, **options):
    truth = loss_and_gradients(x.double(), centers.double(), "reference", **options)
    plain = loss_and_gradients(x, centers, "reference", **options)
    got = loss_and_gradients(x, centers, precision=precision, **options)
    for name, factor, case in zip(("loss", "x", "centers"), (2, 3, 3), zip(got, plain, truth)):
        assert case[0].dtype == case[1].dtype
        if x.dtype == torch.float64:  # plain torch is the truth then, and as far from it as we may be
            assert relative_error(case[0], case[2]) < 1e-14
            continue
        assert_not_worse_than_torch([case], factor=factor, dtype=x.dtype, name=name)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("precision", [BY_DIFFERENCES, BY_PRODUCTS])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_matches(shape, precision, options):
    check(*make_points(*shape), precision, **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_other_dtypes_of_any_strides(dtype, options):
    x, centers = make_points(70, 9, 24, dtype)
    wide = torch.zeros(140, 48, dtype=dtype, device=DEVICE)
    wide[::2, ::2] = x
    check(wide[::2, ::2], centers.t().contiguous().t(), BY_DIFFERENCES, **options)


def test_given_labels():
    x, centers = make_points(70, 9, 6)
    labels = torch.randint(-1, 9, (70,), device=DEVICE)
    check(x, centers, BY_DIFFERENCES, labels=labels)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_T15_large_offset_and_rows_on_centers(options):
    x, centers = make_points(70, 20, 40, offset=1e3)
    x[:20], centers[3] = centers[torch.arange(20) % 8], centers[5]
    check(x, centers, BY_PRODUCTS, **options)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_T03_a_row_with_nan_is_heard(options):
    x, centers = make_points(40, 5, 6)
    x[3, 1] = torch.nan
    assert kmeans_loss(x, centers, backend="triton", **options).isnan()


def test_a_center_far_away_takes_no_part():
    x, centers = make_points(40, 5, 6)
    far = torch.cat([torch.full((1, 6), 1e19, device=DEVICE), centers, torch.full((20, 6), 1e18, device=DEVICE)])
    got, expected = (loss_and_gradients(x, c, mode="soft") for c in (far, centers))
    assert torch.allclose(got[0], expected[0])
    assert torch.allclose(got[1], expected[1], rtol=1e-4, atol=1e-6)


def test_opcheck():
    x, centers = (t.requires_grad_() for t in make_points(30, 4, 6))
    for temperature in (None, 2.0):
        arguments = (x, centers, None, temperature, "ieee", True, True)
        torch.library.opcheck(loss_ops.LOSS["triton"], arguments)
