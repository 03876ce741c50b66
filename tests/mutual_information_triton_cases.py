"""Values and gradients of the GPU kernels; run by ``test_mutual_information_triton.py`` in a process of its own.

With TRITON_INTERPRET=1 tensors stay on the CPU.
"""

import os

import pytest
import torch

from fastdc.kernels import _triton
from fastdc.kernels._accuracy import relative_error
from fastdc.kernels.mutual_information import entropy_statistics, vat_kl
from tests.mutual_information_cases import (
    DTYPES,
    OF_LOGITS,
    OF_PROBABILITIES,
    check,
    make_logits,
    make_probabilities,
    value_and_gradient,
    vat,
)

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
SHAPES = [(1, 1), (7, 3), (140, 10), (2, 40, 37)]  # (heads,) rows, clusters

# the interpreter's numpy warns where a GPU is silent: logarithms of zero, and rows beyond the last
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(params=[False, True], ids=["one-tile", "tiles"])
def _tiles(request, monkeypatch):
    """Once with all clusters in one tile, once in tiles of 16."""
    if request.param:
        monkeypatch.setattr(_triton, "WIDEST", 16)


@pytest.mark.usefixtures("_tiles")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_of_logits_matches(shape):
    for function in OF_LOGITS.values():
        check("triton", lambda s, f=function: (f, make_logits(shape, seed=s, device=DEVICE)), torch.float32, seeds=2)


@pytest.mark.usefixtures("_tiles")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_of_probabilities_matches(shape):
    for function in OF_PROBABILITIES.values():
        check(
            "triton",
            lambda s, f=function: (f, make_probabilities(shape, seed=s, device=DEVICE)),
            torch.float32,
            seeds=2,
        )


@pytest.mark.usefixtures("_tiles")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("size", [3.0, 0.3], ids=["far", "near"])
def test_vat_matches(shape, size):
    def make_case(seed):
        logits = make_logits(shape, seed=seed, device=DEVICE)
        return vat(logits), logits + make_logits(shape, spread=size, seed=seed + 100, device=DEVICE)

    check("triton", make_case, torch.float32, seeds=2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_and_stride(dtype):
    x, other = make_logits((90, 20), dtype, device=DEVICE), make_logits((90, 20), dtype, seed=1, device=DEVICE)
    wide = torch.zeros(180, 40, dtype=dtype, device=DEVICE)
    wide[::2, ::2] = x
    for function in (*OF_LOGITS.values(), vat(other)):
        check("triton", lambda _, f=function: (f, wide[::2, ::2]), dtype, seeds=1)
        strided = value_and_gradient(function, wide[::2, ::2], "triton")
        contiguous = value_and_gradient(function, x, "triton")
        assert all(torch.equal(a, b) for a, b in zip(strided, contiguous))


def test_gradcheck():
    x = make_logits((2, 4, 3), torch.float64, spread=1.0, device=DEVICE).requires_grad_()
    p = make_probabilities((4, 3), torch.float64, device=DEVICE).requires_grad_()
    other = make_logits((2, 4, 3), torch.float64, spread=1.0, seed=1, device=DEVICE)
    for function in (*OF_LOGITS.values(), vat(other)):
        assert torch.autograd.gradcheck(lambda x, f=function: f(x, "triton"), (x,))
    for function in OF_PROBABILITIES.values():
        assert torch.autograd.gradcheck(lambda p, f=function: f(p, "triton"), (p,))


@pytest.mark.usefixtures("_tiles")
def test_masked_and_extreme_logits():
    x = make_logits((70, 20), device=DEVICE)
    x[:, :17] = -torch.inf  # the whole first tile
    x[0], x[1, 18] = 6e4, 3e4
    moved = x + make_logits((70, 20), seed=1, device=DEVICE)
    moved[2, 19] += 500.0
    for function, points in (*((f, x) for f in OF_LOGITS.values()), (vat(x), moved)):
        got = value_and_gradient(function, points, "triton")
        for a, b in zip(got, value_and_gradient(function, points, "reference")):
            assert bool(torch.isfinite(a).all())
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-7)
    narrower = x.clone()
    narrower[:, 19] = -torch.inf
    assert vat_kl(x, narrower, backend="triton").isposinf()


def test_vat_keeps_its_digits_where_the_views_are_close():
    logits = make_logits((100, 10), device=DEVICE)
    perturbed = logits + make_logits((100, 10), spread=1e-5, seed=1, device=DEVICE)
    truth = value_and_gradient(vat(logits), perturbed.double(), "reference")
    got = value_and_gradient(vat(logits), perturbed, "triton")
    assert all(relative_error(a, b) < 1e-5 for a, b in zip(got, truth))


def test_a_row_with_nan_shows():
    for column in (0, 3):
        x = make_logits((70, 5), device=DEVICE)
        x[7, column] = float("nan")
        for function in (*OF_LOGITS.values(), *OF_PROBABILITIES.values(), vat(make_logits((70, 5), device=DEVICE))):
            assert function(x, "triton").isnan()


@pytest.mark.usefixtures("_tiles")
def test_statistics_and_same_bits_again():
    x = make_logits((2, 300, 20), device=DEVICE)
    first, second = (entropy_statistics(x, from_logits=True, backend="triton") for _ in range(2))
    truth = entropy_statistics(x.double(), from_logits=True, backend="reference")
    assert torch.equal(first.mass, second.mass)
    assert relative_error(first.mass, truth.mass) < 1e-6
    assert relative_error(first.entropy_sum, truth.entropy_sum) < 1e-6
