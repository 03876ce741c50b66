"""Self-expression: the loss of self-expressive layers, and the closed forms."""

import numpy as np
import pytest
import torch

from fastdc.kernels._accuracy import relative_error
from fastdc.kernels.self_expression import (
    SelfExpression,
    closed_form,
    low_rank_self_expression,
    ridge_self_expression,
    self_expression_loss,
)
from fastdc.kernels.self_expression import loss as loss_module
from fastdc.losses import SelfExpressionLoss
from tests.graph_cases import DTYPES, check, value_and_gradients

NORMS = ["fro", "l1"]
SHAPES = [(1, 1), (5, 3), (70, 4), (130, 200)]


def make_layer(shape, dtype=torch.float32, seed=0):
    """Embeddings, and coefficients with a large diagonal that must not matter."""
    n, d = shape
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, d, generator=generator, dtype=torch.float64)
    c = torch.randn(n, n, generator=generator, dtype=torch.float64) / n
    return z.to(dtype), (c + 100.0 * torch.eye(n)).to(dtype)


def plain_loss(z, c, regularization, norm):
    dtype = torch.promote_types(torch.promote_types(z.dtype, c.dtype), torch.float32)
    z, c = z.to(dtype), c.to(dtype)
    c0 = c - c.diagonal().diag()
    penalty = c0.square().sum() if norm == "fro" else c0.abs().sum()
    return (z - c0 @ z).square().sum() + regularization * penalty


def loss_of(norm, regularization=0.3):
    def function(z, c, which):
        return (plain_loss if which == "reference" else self_expression_loss)(z, c, regularization, norm)

    return function


@pytest.fixture(params=["one-block", "blocks"], autouse=True)
def _blocks(request, monkeypatch):
    """Once with blocks as they are, once with the fewest rows that a block has."""
    if request.param == "blocks":
        monkeypatch.setattr(loss_module, "BLOCK_BYTES", {"cpu": 1})
        monkeypatch.setattr(closed_form, "ROWS_A_PRODUCT", 7)


# --- the loss


def test_by_hand():
    z = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]], requires_grad=True)
    c = torch.tensor([[9.0, 0.25, 0.0], [1.0, 9.0, 0.0], [0.0, 0.0, 9.0]], requires_grad=True)
    loss = self_expression_loss(z, c, regularization=0.0)
    loss.backward()
    assert loss.item() == 0.25 + 1.0 + 1.0  # residuals (0.5, 0), (1, 0), (0, 1)
    assert torch.equal(z.grad, torch.tensor([[-1.0, 0.0], [1.75, 0.0], [0.0, 2.0]]))
    assert torch.equal(c.grad, torch.tensor([[0.0, -2.0, 0.0], [-2.0, 0.0, 0.0], [-0.0, -0.0, 0.0]]))
    for norm, penalty in (("fro", 1.0625), ("l1", 1.25)):
        assert self_expression_loss(z, c, 2.0, norm).item() == 2.25 + 2 * penalty


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches(shape, dtype, norm):
    check(lambda seed: (loss_of(norm), make_layer(shape, dtype, seed)), dtype, "ours")


@pytest.mark.parametrize("norm", NORMS)
def test_gradcheck(norm):
    z, c = (t.requires_grad_() for t in make_layer((6, 3), torch.float64))
    assert torch.autograd.gradcheck(lambda z, c: self_expression_loss(z, c, 0.3, norm), (z, c))
    for one in (z, c):
        function = lambda t, one=one: self_expression_loss(*((t, c.detach()) if one is z else (z.detach(), t)), 0.3)  # noqa: E731
        assert torch.autograd.gradcheck(function, (one,))


def test_the_diagonal_does_not_matter():
    z, c = make_layer((90, 5))
    other = c.clone()
    other.diagonal()[:] = torch.linspace(-1e30, 1e30, 90)
    other[3, 3] = float("nan")
    for a, b in zip(*(value_and_gradients(lambda z, c: self_expression_loss(z, c, 0.3), z, k) for k in (c, other))):
        assert torch.equal(a, b)
    _, _, grad_c = value_and_gradients(lambda z, c: self_expression_loss(z, c, 0.3), z, c)
    assert not grad_c.diagonal().any()


def test_T05_zeros_have_a_finite_gradient():
    for norm in NORMS:
        got = value_and_gradients(lambda z, c, p=norm: self_expression_loss(z, c, 1.0, p), *torch.zeros(2, 4, 4))
        assert all(not t.any() for t in got)


def test_T16_half_rows_whose_squares_overflow_half():
    z, c = make_layer((60, 200), torch.float16)
    truth = plain_loss(z.double() * 200, c.double(), 0.3, "fro")
    assert truth > 65504
    assert relative_error(self_expression_loss(z * 200, c, 0.3), truth) < 1e-3


def test_T20_strides_and_inputs_kept():
    z, c = make_layer((70, 4))
    wide = torch.zeros(140, 140)
    wide[::2, ::2] = c
    copies = z.clone(), wide.clone()
    a = value_and_gradients(lambda z, c: self_expression_loss(z, c, 0.3, "l1"), z, c)
    b = value_and_gradients(lambda z, c: self_expression_loss(z, c, 0.3, "l1"), z.T.contiguous().T, wide[::2, ::2])
    assert all(relative_error(x, y) < 1e-6 for x, y in zip(a, b))
    assert torch.equal(z, copies[0])
    assert torch.equal(wide, copies[1])


def test_a_row_with_nan_shows():
    z, c = make_layer((70, 4))
    z[7, 3] = float("nan")
    assert self_expression_loss(z, c).isnan()
    z, c = make_layer((70, 4))
    c[7, 3] = float("nan")
    assert self_expression_loss(z, c).isnan()


def test_retain_graph_and_second_derivatives():
    z, c = (t.requires_grad_() for t in make_layer((20, 4)))
    loss = self_expression_loss(z, c)
    first = torch.autograd.grad(loss, (z, c), retain_graph=True)
    copies = [g.clone() for g in first]
    second = torch.autograd.grad(3 * loss, (z, c), retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, copies))
    assert all(torch.allclose(a, 3 * b) for a, b in zip(second, first))
    (gradient,) = torch.autograd.grad(loss, z, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        gradient.sum().backward()
    with pytest.raises(NotImplementedError, match="self_expression_loss has no rule"):
        torch.func.grad(self_expression_loss)(z.detach(), c.detach())


def test_opcheck_and_one_graph():
    z, c = make_layer((20, 4))
    torch.library.opcheck(
        loss_module.loss_and_gradients, (z.clone().requires_grad_(), c.clone().requires_grad_(), 0.3, "l1", True, True)
    )
    function = lambda z, c: self_expression_loss(z * 1.0, c * 1.0, 0.3)  # noqa: E731
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
    got, expected = value_and_gradients(compiled, z, c), value_and_gradients(function, z, c)
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in zip(got, expected))


def test_dtypes_autocast_and_inference_mode():
    z, c = make_layer((70, 4))
    loss, grad_z, grad_c = value_and_gradients(self_expression_loss, z.half(), c)
    assert (loss.dtype, grad_z.dtype, grad_c.dtype) == (torch.float32, torch.float16, torch.float32)
    expected = self_expression_loss(z, c)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(self_expression_loss(z, c), expected)
    with torch.inference_mode():
        assert torch.equal(self_expression_loss(z * 1.0, c), expected)
    assert torch.equal(SelfExpressionLoss(0.3, "l1")(z, c), self_expression_loss(z, c, 0.3, "l1"))


# --- closed forms


def make_subspaces(n, d, rank=3, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    bases = torch.randn(3, rank, d, generator=generator, dtype=torch.float64)
    points = torch.randn(3, -(-n // 3), rank, generator=generator, dtype=torch.float64) @ bases
    return points.reshape(-1, d)[:n].to(dtype)


def ridge_by_inverse(z, regularization):
    p = torch.linalg.inv(z @ z.T + regularization * torch.eye(len(z), dtype=z.dtype))
    c = -p / p.diagonal()[:, None]
    return c.fill_diagonal_(0)


@pytest.mark.parametrize("shape", [(40, 6), (6, 40), (12, 12), (2, 1)], ids=str)
@pytest.mark.parametrize("regularization", [0.01, 1.0, 100.0])
def test_ridge_is_the_inverse_of_the_gram_matrix(shape, regularization):
    z = torch.randn(shape, dtype=torch.float64)
    c = ridge_self_expression(z, regularization)
    expected = ridge_by_inverse(z, regularization)
    assert torch.allclose(c.to_dense(), expected, rtol=1e-8, atol=1e-10)
    assert c.left.shape[1] == min(shape)
    assert not c.to_dense().diagonal().any()


def test_ridge_minimises_the_loss():
    """The gradient of the loss vanishes there: both ends of this room agree on the problem."""
    z = torch.randn(30, 5, dtype=torch.float64)
    c = ridge_self_expression(z, 0.7).to_dense()
    _, gradient = value_and_gradients(lambda c: self_expression_loss(z, c, 0.7), c)
    assert float(gradient.abs().max()) < 1e-11
    row = np.linalg.lstsq(
        np.vstack([z[1:].T, np.sqrt(0.7) * np.eye(29)]), np.concatenate([z[0], np.zeros(29)]), rcond=None
    )[0]
    assert np.allclose(c[0, 1:], row, rtol=1e-9, atol=1e-12)


def test_ridge_keeps_its_digits_where_points_are_almost_explained():
    """With less points than features and little regularization 1 - H_ii is 1e-10, which must not cancel."""
    z = torch.randn(8, 20, dtype=torch.float64)
    assert torch.allclose(ridge_self_expression(z, 1e-9).to_dense(), ridge_by_inverse(z, 1e-9), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("shape", [(40, 6), (6, 40), (30, 12)], ids=str)
def test_low_rank_is_the_thin_svd(shape):
    z = torch.randn(shape, dtype=torch.float64)
    u, s, _ = torch.linalg.svd(z, full_matrices=False)
    for regularization in (0.0, 0.3, float(s[2] ** 2) * 1.0001):
        weights = (1 - regularization / s.square()).clamp(min=0)
        expected = (u * weights) @ u.T
        full = low_rank_self_expression(z, regularization, zero_diagonal=False)
        assert torch.allclose(full.to_dense(), expected, rtol=1e-9, atol=1e-11)
        x = torch.randn(shape[0], 3, dtype=torch.float64)
        assert torch.allclose(full.apply(x), expected @ x, rtol=1e-9, atol=1e-11)
        c = low_rank_self_expression(z, regularization)
        assert torch.allclose(c.to_dense(), expected.fill_diagonal_(0), rtol=1e-9, atol=1e-11)


def test_low_rank_reproduces_rank_deficient_data():
    for shape in ((60, 20), (12, 40)):
        z = make_subspaces(*shape)
        c = low_rank_self_expression(z, zero_diagonal=False)
        assert torch.allclose(c.apply(z), z, rtol=1e-9, atol=1e-9)
        assert float(c.to_dense().diagonal().sum()) == pytest.approx(torch.linalg.matrix_rank(z).item(), rel=1e-9)


def test_independent_subspaces_do_not_mix():
    """Points of independent subspaces are made up of their own kind."""
    z = make_subspaces(60, 20)
    kind = torch.arange(60) // 20
    between = low_rank_self_expression(z).to_dense()[kind[:, None] != kind]
    assert float(between.abs().max()) < 1e-9


@pytest.mark.parametrize("make", [ridge_self_expression, low_rank_self_expression])
def test_operator_forms_agree(make):
    z = torch.randn(50, 7, dtype=torch.float64)
    c = make(z, 0.5)
    dense = c.to_dense()
    x = torch.randn(50, 4, dtype=torch.float64)
    assert torch.allclose(c.apply(x), dense @ x, rtol=1e-11, atol=1e-12)
    assert torch.allclose(c.apply_transposed(x), dense.T @ x, rtol=1e-11, atol=1e-12)
    assert torch.allclose(c.rows(13, 31), dense[13:31], rtol=1e-13, atol=1e-15)
    assert not c.rows(13, 31).diagonal(13).any()


@pytest.mark.parametrize("make", [ridge_self_expression, low_rank_self_expression])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(make, dtype):
    z = torch.randn(50, 7).to(dtype)
    c, truth = make(z, 0.5).to_dense(), make(z.double(), 0.5).to_dense()
    assert c.dtype == torch.promote_types(dtype, torch.float32)
    assert relative_error(c, truth) < 1e-6
    assert not make(z.requires_grad_(), 0.5).left.requires_grad


@pytest.mark.parametrize("make", [ridge_self_expression, low_rank_self_expression])
def test_T05_T06_T13_degenerate_points(make):
    for z in (torch.zeros(5, 3), torch.ones(6, 2), torch.ones(1, 4), torch.full((3, 8), 1e-30)):
        assert bool(make(z).to_dense().isfinite().all())
    assert make(torch.ones(1, 4)).to_dense().item() == 0.0


def test_large_problems_stay_thin():
    z = torch.randn(200_000, 4)
    c = ridge_self_expression(z)
    assert isinstance(c, SelfExpression)
    residual = z - c.apply(z)
    assert float(residual.square().mean()) < 1e-6


# --- errors

Z, C = torch.zeros(3, 2), torch.zeros(3, 3)
BAD = [
    (lambda: self_expression_loss(np.zeros((3, 2)), C), TypeError, "z must be a torch.Tensor, got ndarray"),
    (lambda: self_expression_loss(Z, C.long()), TypeError, "c must be float32, float64, float16 or bfloat16"),
    (
        lambda: self_expression_loss(Z, C[:2]),
        ValueError,
        r"c must have shape \(3, 3\), a row and a column for each row of z, got \(2, 3\)",
    ),
    (lambda: self_expression_loss(Z, C.to("meta")), ValueError, "c is on meta but z is on cpu"),
    (lambda: self_expression_loss(Z, C, -1.0), ValueError, "regularization must be a finite number, 0 or above"),
    (lambda: self_expression_loss(Z, C, norm="l2"), ValueError, r"norm must be one of \('fro', 'l1'\), got 'l2'"),
    (lambda: ridge_self_expression(Z[0]), ValueError, "z must be 2-D"),
    (lambda: ridge_self_expression(Z[:0]), ValueError, r"z is empty, shape \(0, 2\)"),
    (lambda: ridge_self_expression(Z, 0.0), ValueError, "regularization must be a finite number above 0, got 0.0"),
    (lambda: low_rank_self_expression(Z, float("nan")), ValueError, "regularization must be a finite number, 0 or"),
    (lambda: SelfExpressionLoss(-1.0), ValueError, "regularization must be a finite number, 0 or above, got -1.0"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[message for *_, message in BAD])
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
