"""Values of the GPU kernels of the contrastive room; run by ``test_contrastive_triton.py`` in a process of its own."""

import math
import os

import pytest
import torch

from fastdc.kernels import _triton
from fastdc.kernels._accuracy import assert_not_worse_than_torch, relative_error
from fastdc.kernels.contrastive import custom_ops, nt_xent
from tests.contrastive_cases import DTYPES, LOSSES, loss_and_gradients, make_inputs, make_views

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
SHAPES = [(2, 3), (70, 20), (150, 5)]  # samples, features

# the interpreter's numpy warns where a GPU is silent: logarithms of zero, and infinity less infinity
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def on_device(tensors):
    return [t.to(DEVICE) for t in tensors]


def run(name, tensors, constants, **options):
    results = loss_and_gradients(LOSSES[name][0], on_device(tensors), on_device(constants), backend="triton", **options)
    return [t.cpu() for t in results]


def check(name, tensors, constants, **options):
    working = torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
    plain = LOSSES[name][1]
    truth = loss_and_gradients(plain, [t.double() for t in tensors], constants, **options)
    same = loss_and_gradients(plain, [t.to(working) for t in tensors], constants, **options)
    for place, (got, expected, exact) in enumerate(zip(run(name, tensors, constants, **options), same, truth)):
        if working == torch.float64:
            assert relative_error(got, exact) < 1e-13
        else:
            case = (got, expected.to(got.dtype), exact)
            assert_not_worse_than_torch([case], factor=3 if place else 2, dtype=tensors[0].dtype, name=str(place))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_matches(name, shape):
    check(name, *make_inputs(name, *shape))


@pytest.mark.parametrize("dtype", [DTYPES[0], *DTYPES[2:]], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_matches_in_every_dtype(name, dtype):
    check(name, *make_inputs(name, 40, 6, dtype))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("options", [{"temperature": 0.001}, {"temperature": 0.02, "normalize": False}], ids=str)
def test_large_exponents(name, options):
    check(name, *make_inputs(name, 40, 6), **options)


@pytest.mark.parametrize("name", ["nt_xent", "info_nce"])
def test_views_that_have_met(name):
    check(name, *make_inputs(name, 40, 32, spread=0.05), temperature=0.05)


@pytest.mark.parametrize("precision", ["tf32x3", "tf32"] if DEVICE == "cpu" else ["tf32x3", "tf32", "bf16"])
def test_products(precision):
    """The way of matrix units; the interpreter computes it in float32, and bfloat16 is beyond it."""
    for name in LOSSES:
        tensors, constants = make_inputs(name, 40, 40)
        exact = loss_and_gradients(LOSSES[name][0], [t.double() for t in tensors], constants, backend="reference")
        for got, truth in zip(run(name, tensors, constants, precision=precision), exact):
            assert relative_error(got, truth) < {"tf32x3": 1e-5, "tf32": 5e-3, "bf16": 5e-2}[precision]


def test_parts_of_the_other_side(monkeypatch):
    """Few queries against many keys: programs share the keys."""
    queries, keys, bank = (*make_views(20, 5), torch.cat(make_views(120, 5, seed=1)))
    options = {"symmetric": False, "backend": "triton"}
    wanted = []
    for n_processors in (1, 40):
        monkeypatch.setattr(_triton, "INTERPRETER", _triton.Chip(n_processors, 90))
        wanted.append(loss_and_gradients(LOSSES["info_nce"][0], on_device([queries, keys, bank]), **options))
    for one, many in zip(*wanted):
        assert relative_error(many.cpu(), one.cpu()) < 1e-6


def test_keys_of_a_rank_and_shared_positives():
    """What a group asks for: own rows amid all keys; and labels as positives, which many anchors share."""
    keys, anchors = torch.randn(50, 6).double(), torch.randn(20, 6).double()
    for options in ((keys[30:], keys, (torch.arange(20) * 7) % 30, 30), (anchors, keys[:7], torch.arange(20) % 7, -1)):
        *tensors, places, offset = options
        results = []
        for backend in ("reference", "triton"):
            leaves = [t.to(DEVICE).detach().requires_grad_() for t in tensors]
            rows, columns = custom_ops.contrast(backend, *leaves, places.to(DEVICE), 3.0, self_offset=offset)
            assert len(columns) == 0
            results.append((rows.detach(), *torch.autograd.grad(rows.sum(), leaves)))
        for got, exact in zip(*results):
            assert relative_error(got.cpu(), exact.cpu()) < 1e-13


def test_zeros_nan_and_strides():
    tensors, _ = make_inputs("nt_xent", 40, 6)
    tensors[0][3] = 0.0
    _, gradient, _ = run("nt_xent", tensors, [])
    assert (gradient[3] == 0).all()
    wide = torch.zeros(80, 12)
    wide[::2, ::2] = tensors[0]
    strided = [wide[::2, ::2].to(DEVICE), tensors[1].t().contiguous().t()]
    expected = run("nt_xent", tensors, [], normalize=False)
    assert all(torch.equal(a, b) for a, b in zip(run("nt_xent", strided, [], normalize=False), expected))
    tensors[1][7, 2] = math.nan
    assert nt_xent(*on_device(tensors), backend="triton").isnan()


def test_opcheck():
    anchors, keys = (t.to(DEVICE).requires_grad_() for t in make_views(20, 5))
    op, places = custom_ops.CONTRAST["triton"], torch.arange(20, device=DEVICE)
    torch.library.opcheck(op, (anchors, keys, places, 2.0, [-1, 20], "ieee"))
    torch.library.opcheck(op, (anchors, None, None, 2.0, [-1, 0], "ieee"))
