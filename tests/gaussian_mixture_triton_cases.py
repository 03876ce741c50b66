"""Values of the GPU kernels of the Gaussian mixture room; run by ``test_gaussian_mixture_triton.py`` in a process
of its own. With TRITON_INTERPRET=1 tensors stay on the CPU.
"""

import math
import os

import pytest
import torch

from fastdc.kernels._accuracy import assert_not_worse_than_torch, relative_error
from fastdc.kernels.gaussian_mixture import gmm_log_density, torch_chunks
from tests.gaussian_mixture_cases import (
    KINDS,
    LEAVES,
    double,
    everything,
    loss_and_gradients,
    make_latent,
    make_mixture,
)

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
SHAPES = [(1, 1, 1), (150, 20, 3)]  # n_samples, n_components, n_features: one tile, and beyond it
NAMES = ("responsibilities", "log_density", "log_likelihood", "counts", "sums", "scatters")

# the interpreter's numpy warns where a GPU is silent: logarithms of zero, and infinity less infinity
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def on_device(tensors):
    return [t.to(DEVICE) for t in tensors]


def on_gpu(mixture, kind, weight=None):
    """Results of the GPU kernels, on the CPU."""
    weight = None if weight is None else weight.to(DEVICE)
    return {name: value.cpu() for name, value in everything(on_device(mixture), kind, "triton", weight).items()}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_mixture_matches(kind, shape, monkeypatch):
    monkeypatch.setattr(torch_chunks, "CHUNK", 64)
    mixture, weight = make_mixture(*shape, kind), torch.rand(shape[0]) + 0.1
    got, plain = on_gpu(mixture, kind, weight), everything(mixture, kind, "reference", weight)
    truth = everything(double(mixture), kind, "reference", weight)
    for name in NAMES:
        case = (got[name], plain[name], truth[name])
        assert_not_worse_than_torch([case], factor=2, dtype=torch.float32, name=name)
    assert torch.equal(got["labels"], plain["labels"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_other_dtypes(dtype):
    mixture = make_mixture(70, 5, 3, "diag", dtype)
    got, truth = on_gpu(mixture, "diag"), everything(double(mixture), "diag", "reference")
    for name in NAMES:
        assert relative_error(got[name], truth[name]) < (1e-12 if dtype == torch.float64 else 1e-5), name
    tensors = make_latent(70, 5, 3, dtype)
    got = loss_and_gradients(on_device(tensors), backend="triton")
    truth = loss_and_gradients(double(tensors), backend="reference")
    for name, a, b in zip(("loss", *LEAVES), got, truth):
        limit = 1e-12 if dtype == torch.float64 else 1e-5 if name == "loss" else 4 * torch.finfo(dtype).eps
        assert relative_error(a.cpu(), b) < limit, name


@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_a_density(kind):
    x, *parameters = make_mixture(140, 4, 3, kind)
    good = torch.ones(140, dtype=torch.bool)
    for row, value in ((3, math.nan), (70, math.inf), (139, 1e30)):
        x[row, 1], good[row] = value, False
    got, expected = on_gpu([x, *parameters], kind), on_gpu([x[good], *parameters], kind)
    assert got["n_invalid"] == 3
    assert (got["labels"][~good] == -1).all()
    assert got["responsibilities"][~good].isnan().all()
    assert torch.equal(got["labels"][good], expected["labels"])
    for name in ("log_likelihood", "counts", "sums", "scatters"):
        assert torch.allclose(got[name], expected[name], rtol=1e-5, atol=1e-5), name


def test_ties_and_empty_components():
    labels = gmm_log_density(*on_device((torch.zeros(9, 2), torch.ones(40, 2), torch.ones(40), torch.ones(40))),
                             "spherical", backend="triton").labels  # fmt: skip
    assert (labels == 0).all()
    x, means, covariances, weights = make_mixture(50, 20, 2, "diag")
    weights[:18] = 0.0  # a whole tile of components of no weight
    got, truth = (f((x, means, covariances, weights), "diag") for f in (on_gpu, lambda m, k: everything(m, k, "numba")))
    assert (got["counts"][:18] == 0).all()
    for name in NAMES:
        assert relative_error(got[name], truth[name]) < 1e-5, name


def test_strides():
    x, *parameters = make_mixture(130, 6, 5, "diag")
    wide = torch.full((260, 10), math.nan)
    wide[::2, ::2] = x
    expected = on_gpu([x, *parameters], "diag")
    means = parameters[0].t().contiguous().t()
    for view in (wide[::2, ::2], x.t().contiguous().t()):
        got = on_gpu([view, means, *parameters[1:]], "diag")
        assert all(torch.equal(got[name], expected[name]) for name in got)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("detached", [False, True])
def test_vade_matches(shape, detached):
    tensors, options = make_latent(*shape), {"detach_responsibilities": detached}
    got = loss_and_gradients(on_device(tensors), **options, backend="triton")
    plain = loss_and_gradients(tensors, **options, backend="reference")
    truth = loss_and_gradients(double(tensors), **options, backend="reference")
    for name, *case in zip(("loss", *LEAVES), got, plain, truth):
        case[0] = case[0].cpu()
        if bool((case[2].abs() < 1e-12).all()):
            assert case[0].abs().max() < 1e-6, name
        else:
            factor = 2 if name == "loss" else 3
            assert_not_worse_than_torch([tuple(case)], factor=factor, dtype=torch.float32, name=name)


def test_vade_far_and_of_no_weight():
    z, mu, log_var, means, log_vars, logits = make_latent(70, 20, 3)
    logits[:16] = -math.inf
    far = [z + 1e5, mu + 1e5, log_var, means, log_vars, logits]
    got = loss_and_gradients(on_device(far), backend="triton")
    truth = loss_and_gradients(double(far), backend="reference")
    for name, a, b in zip(("loss", *LEAVES), got, truth):
        assert relative_error(a.cpu(), b) < 1e-4, name
