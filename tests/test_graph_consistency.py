"""SCAN's consistency of neighbours on CPUs; Triton's kernels have a file of their own."""

import math

import pytest
import torch

from fastdc.kernels import BackendError
from fastdc.kernels._accuracy import relative_error
from fastdc.kernels.graph import consistency_ops, neighbor_consistency_loss
from fastdc.losses import SCANLoss
from tests.graph_cases import DTYPES, check, value_and_gradients
from tests.mutual_information_cases import make_logits, make_probabilities

BACKENDS = ["reference", "numba"]
SHAPES = [(1, 1), (7, 3), (64, 16), (257, 10), (130, 37), (70, 300)]
MAKE = {True: make_logits, False: make_probabilities}


def loss_of(from_logits, entropy_weight=5.0):
    return lambda a, b, backend: neighbor_consistency_loss(
        a, b, entropy_weight, from_logits=from_logits, backend=backend
    )


# --- by hand, and by independent formulas


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend):
    p, q = torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([[0.25, 0.75], [0.4, 0.6]])
    consistency = -(math.log(0.5) + math.log(0.4)) / 2
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    for weight in (0.0, 1.0, 5.0):
        got = neighbor_consistency_loss(p, q, weight, backend=backend)
        assert got.item() == pytest.approx(consistency - weight * entropy, rel=1e-6)
    assert neighbor_consistency_loss(p, q, backend=backend).item() == pytest.approx(consistency - 5 * entropy, rel=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_is_the_authors_form(backend):
    """Binary cross-entropy of the dot products against ones, less the weighted entropy of the mean."""
    a, b = make_logits((80, 6), torch.float64), make_logits((80, 6), torch.float64, seed=1)

    def authors(a, b):
        p, q = a.softmax(1), b.softmax(1)
        dot = torch.bmm(p[:, None, :], q[:, :, None]).squeeze()
        consistency = torch.nn.functional.binary_cross_entropy(dot, torch.ones_like(dot))
        mean = p.mean(0).clamp(min=1e-8)
        return consistency + 5.0 * (mean * mean.log()).sum()

    expected = value_and_gradients(authors, a, b)
    got = value_and_gradients(lambda a, b: loss_of(True)(a, b, backend), a, b)
    assert all(torch.allclose(x, y, rtol=1e-10, atol=1e-14) for x, y in zip(got, expected))


@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_and_their_probabilities_agree(backend):
    a, b = make_logits((50, 5), torch.float64), make_logits((50, 5), torch.float64, seed=1)
    of_logits = loss_of(True)(a, b, backend)
    assert loss_of(False)(a.softmax(1), b.softmax(1), backend).item() == pytest.approx(of_logits.item(), rel=1e-13)


# --- no worse than torch


@pytest.mark.parametrize("from_logits", [True, False], ids=["logits", "probabilities"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches(shape, dtype, from_logits):
    def make_case(seed):
        return loss_of(from_logits, 0.0), tuple(MAKE[from_logits](shape, dtype, seed=seed + v) for v in (0, 50))

    check(make_case, dtype, "numba", seeds=4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_with_entropy_matches(dtype):
    def make_case(seed):
        return loss_of(True), tuple(make_logits((150, 10), dtype, seed=seed + v) for v in (0, 50))

    check(make_case, dtype, "numba", seeds=4)


# --- where a product of probabilities fails


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_in_common_is_finite(backend):
    p = torch.eye(2)
    for leaves, from_logits in (((p, p.flip(0)), False), ((100 * p, 100 * p.flip(0)), True)):
        value, *gradients = value_and_gradients(lambda a, b, f=from_logits: loss_of(f, 0.0)(a, b, backend), *leaves)
        assert 80 < value < 110
        assert all(bool(g.isfinite().all()) and bool((g != 0).any()) for g in gradients)


@pytest.mark.parametrize("backend", BACKENDS)
def test_small_dots_keep_their_digits(backend):
    """Dot products near 1e-60, far below float32."""
    a = make_logits((64, 7), spread=2.0)
    b = a.roll(3, dims=1).clone()
    a[:, 0] += 140.0
    b[:, 3] += 140.0
    truth = value_and_gradients(lambda a, b: loss_of(True, 0.0)(a, b, "reference"), a.double(), b.double())
    got = value_and_gradients(lambda a, b: loss_of(True, 0.0)(a, b, backend), a, b)
    assert truth[0] > 100
    assert all(relative_error(x, y) < 1e-4 for x, y in zip(got, truth))
    p, q = a.softmax(1), b.softmax(1)
    truth = value_and_gradients(lambda a, b: loss_of(False, 0.0)(a, b, "reference"), p.double(), q.double())
    got = value_and_gradients(lambda a, b: loss_of(False, 0.0)(a, b, backend), p, q)
    assert bool(((p * q).sum(1) < 1e-30).any())
    assert all(bool(t.isfinite().all()) for t in got)


@pytest.mark.parametrize("backend", BACKENDS)
def test_T36_extreme_and_masked_logits(backend):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        a, b = make_logits((70, 20), dtype), make_logits((70, 20), dtype, seed=1)
        a[:, :7], b[:, :7] = -torch.inf, -torch.inf
        a[0], b[1, 18] = 1e4, -1e4
        b[2], b[2, 9] = -1e4, 1e4
        got = value_and_gradients(lambda a, b: loss_of(True)(a, b, backend), a, b)
        assert all(bool(t.isfinite().all()) for t in got)
        assert not got[1][1:, :7].any()


def test_masks_that_do_not_meet_are_finite():
    a, b = torch.zeros(3, 2), torch.zeros(3, 2)
    a[:, 0], b[:, 1] = -torch.inf, -torch.inf
    for backend in BACKENDS:
        assert loss_of(True, 0.0)(a, b, backend).item() == pytest.approx(1000.0 - math.log(2.0), rel=1e-3)


def test_T05_zero_rows_are_finite():
    zeros = torch.zeros(5, 4)
    for backend in BACKENDS:
        got = value_and_gradients(lambda a, b, k=backend: loss_of(False)(a, b, k), zeros, zeros)
        assert all(bool(t.isfinite().all()) for t in got)


def test_large_offset():
    def make_case(seed):
        return loss_of(True, 0.0), tuple(make_logits((200, 8), offset=1e4, seed=seed + v) for v in (0, 50))

    check(make_case, torch.float32, "numba")


@pytest.mark.parametrize("from_logits", [True, False])
def test_a_row_with_nan_shows(from_logits):
    for place in (0, 1):
        for column in (0, 3):
            views = [MAKE[from_logits]((70, 5), seed=s) for s in (0, 1)]
            views[place][7, column] = float("nan")
            assert loss_of(from_logits, 0.0)(*views, "numba").isnan()


# --- invariances


def test_T44_same_bits_for_any_number_of_threads(n_threads, set_threads):
    a, b = make_logits((5000, 9)), make_logits((5000, 9), seed=1)
    set_threads(1)
    one = value_and_gradients(lambda a, b: loss_of(True)(a, b, "numba"), a, b)
    set_threads(n_threads)
    many = value_and_gradients(lambda a, b: loss_of(True)(a, b, "numba"), a, b)
    assert all(torch.equal(x, y) for x, y in zip(one, many))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_T20_strides(dtype):
    a, b = make_logits((90, 20), dtype), make_logits((90, 20), dtype, seed=1)
    wide = torch.zeros(180, 40, dtype=dtype)
    wide[::2, ::2] = a
    contiguous = value_and_gradients(lambda a, b: loss_of(True)(a, b, "numba"), a, b)
    strided = value_and_gradients(lambda a, b: loss_of(True)(a, b, "numba"), wide[::2, ::2], b.T.contiguous().T)
    assert all(torch.equal(x, y) for x, y in zip(contiguous, strided))


def test_half_gradients_do_not_vanish_in_large_batches():
    a, b = make_logits((20_000, 6), torch.float16), make_logits((20_000, 6), torch.float16, seed=1)
    *_, got = value_and_gradients(lambda a, b: loss_of(True)(a, b, "numba") * 65536.0, a, b)
    *_, exact = value_and_gradients(lambda a, b: loss_of(True)(a, b, "reference"), a.double(), b.double())
    assert got.dtype == torch.float16
    assert relative_error(got.double() / 65536.0, exact) < 1e-3


def test_views_of_different_dtypes():
    a, b = make_logits((40, 5)), make_logits((40, 5), torch.bfloat16, seed=1)
    loss, grad_a, grad_b = value_and_gradients(lambda a, b: loss_of(True)(a, b, None), a, b)
    assert (loss.dtype, grad_a.dtype, grad_b.dtype) == (torch.float32, torch.float32, torch.bfloat16)
    assert torch.allclose(loss, loss_of(True)(a, b.float(), None), rtol=1e-6)
    assert loss_of(True)(a, b.double(), None).dtype == torch.float64


# --- autograd and the compiler


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend):
    for from_logits in (True, False):
        make = MAKE[from_logits]
        a, b = (make((5, 3), torch.float64, seed=s).requires_grad_() for s in (0, 1))
        assert torch.autograd.gradcheck(lambda a, b, f=from_logits: loss_of(f)(a, b, backend), (a, b))
        assert torch.autograd.gradcheck(lambda b, a=a, f=from_logits: loss_of(f)(a.detach(), b, backend), (b,))


def test_retain_graph_and_second_derivatives():
    a, b = make_logits((40, 5)).requires_grad_(), make_logits((40, 5), seed=1).requires_grad_()
    loss = loss_of(True)(a, b, "numba")
    first = torch.autograd.grad(loss, (a, b), retain_graph=True)
    copies = [g.clone() for g in first]
    second = torch.autograd.grad(3 * loss, (a, b), retain_graph=True)
    assert all(torch.equal(x, y) for x, y in zip(first, copies))
    assert all(torch.allclose(x, 3 * y) for x, y in zip(second, first))
    (gradient,) = torch.autograd.grad(loss, b, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        gradient.square().sum().backward()


def test_transforms_without_a_rule_raise():
    a = make_logits((20, 4))
    with pytest.raises(NotImplementedError, match="has no rule"):
        torch.func.grad(lambda a: loss_of(True, 0.0)(a, a, None))(a)


def test_opcheck():
    a, b = make_logits((70, 6)).requires_grad_(), make_logits((70, 6), seed=1).requires_grad_()
    torch.library.opcheck(consistency_ops.LOSS, (a, b, 5.0, True))
    torch.library.opcheck(consistency_ops.LOSS, (a, b.detach(), 0.0, True))


def test_compiles_into_one_graph():
    a, b = make_logits((150, 6)), make_logits((150, 6), seed=1)
    training_loss = lambda a, b: loss_of(True)(a * 1.0, b * 1.0, None)  # noqa: E731
    compiled = torch.compile(training_loss, fullgraph=True, backend="aot_eager", dynamic=True)
    got, expected = (value_and_gradients(f, a, b) for f in (compiled, training_loss))
    assert all(torch.allclose(x, y, rtol=1e-5, atol=1e-8) for x, y in zip(got, expected))


def test_module_and_inference_mode():
    a, b = make_logits((60, 5)), make_logits((60, 5), seed=1)
    assert torch.equal(SCANLoss(2.0)(a, b), neighbor_consistency_loss(a, b, 2.0, from_logits=True))
    p, q = a.softmax(1), b.softmax(1)
    assert torch.equal(SCANLoss(from_logits=False)(p, q), neighbor_consistency_loss(p, q))
    with torch.inference_mode():
        assert SCANLoss()(a * 1.0, b).isfinite()


P = torch.full((3, 2), 0.5)
BAD = [
    (lambda: neighbor_consistency_loss([0.5], P), TypeError, "p_anchor must be a torch.Tensor, got list"),
    (
        lambda: neighbor_consistency_loss(P[0], P),
        ValueError,
        r"p_anchor must be 2-D, of shape \(n_samples, n_clusters\), got shape \(2,\)",
    ),
    (lambda: neighbor_consistency_loss(P, P.long()), TypeError, "p_neighbor must be float32, float64, float16"),
    (lambda: neighbor_consistency_loss(P[:0], P[:0]), ValueError, r"p_anchor is empty, shape \(0, 2\)"),
    (
        lambda: neighbor_consistency_loss(P, P[:2]),
        ValueError,
        r"p_neighbor has shape \(2, 2\) but p_anchor has \(3, 2\); each row needs one neighbour's predictions",
    ),
    (lambda: neighbor_consistency_loss(P, P.to("meta")), ValueError, "p_neighbor is on meta but p_anchor is on cpu"),
    (
        lambda: neighbor_consistency_loss(P, P, -1.0),
        ValueError,
        "entropy_weight must be a finite number, 0 or above, got -1.0",
    ),
    (lambda: SCANLoss(float("nan")), ValueError, "entropy_weight must be a finite number, 0 or above, got nan"),
    (lambda: neighbor_consistency_loss(P, P, backend="triton"), BackendError, "triton kernels need GPU tensors"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[message for *_, message in BAD])
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
