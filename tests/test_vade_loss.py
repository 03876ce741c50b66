"""VaDE's loss: against torch.distributions, autograd and float64, under torch.compile; its errors and its module."""

import math

import numpy as np
import pytest
import torch

import fastdc
from fastdc.kernels import BackendError
from fastdc.kernels._accuracy import relative_error
from fastdc.kernels.gaussian_mixture import custom_ops, gmm_responsibilities, vade_loss
from fastdc.losses import VaDELoss
from tests.gaussian_mixture_cases import DTYPES, LEAVES, SHAPES, check_vade, double, loss_and_gradients, make_latent

BACKENDS = ["reference", "numba"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend):
    z, mu, log_var = torch.tensor([[1.0]]), torch.tensor([[3.0]]), torch.tensor([[math.log(2.0)]])
    means, log_vars, logits = torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [0.0]]), torch.tensor([0.0, 0.0])
    # z lies in the middle: both gammas are 1/2, as both weights, whose logarithms cancel
    expected = 0.5 * (2 + 9) / 2 + 0.5 * (2 + 1) / 2 - 0.5 * (1 + math.log(2.0))
    loss = vade_loss(z, mu, log_var, means, log_vars, logits, backend=backend)
    assert loss.item() == pytest.approx(expected)


def independent(z, mu, log_var, means, log_vars, logits, detach_responsibilities=False):
    """By torch.distributions: KL(q(c) || p(c)) + sum_c gamma KL(q(z) || p(z | c))."""
    prior = torch.distributions.Normal(means, (log_vars / 2).exp())
    posterior = torch.distributions.Normal(mu[:, None], (log_var / 2).exp()[:, None])
    log_weights = logits.log_softmax(0)
    log_gamma = (log_weights + prior.log_prob(z[:, None]).sum(2)).log_softmax(1)
    if detach_responsibilities:
        log_gamma = log_gamma.detach()
    divergence = torch.distributions.kl_divergence(posterior, prior).sum(2)
    return (log_gamma.exp() * (divergence + log_gamma - log_weights)).sum(1).mean()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("detached", [False, True])
def test_against_distributions(backend, detached):
    tensors = make_latent(30, 4, 3, torch.float64)
    leaves = [t.clone().requires_grad_() for t in tensors]
    expected = independent(*leaves, detach_responsibilities=detached)
    gradients = torch.autograd.grad(expected, leaves, materialize_grads=True)
    got = loss_and_gradients(tensors, detach_responsibilities=detached, backend=backend)
    for a, b in zip(got, (expected.detach(), *gradients)):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-14)


def test_responsibilities_are_those_of_the_mixture():
    z, _, _, means, log_vars, logits = make_latent(30, 4, 3, torch.float64)
    mixture = (z, means, log_vars.exp(), logits.softmax(0))
    gamma = gmm_responsibilities(*mixture).responsibilities
    logits = logits.clone().requires_grad_()
    vade_loss(z, z, torch.zeros_like(z), means, log_vars, logits, detach_responsibilities=True).backward()
    assert torch.allclose(logits.grad, logits.detach().softmax(0) - gamma.mean(0))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("detached", [False, True])
def test_gradcheck(backend, detached):
    leaves = [t.requires_grad_() for t in make_latent(5, 3, 2, torch.float64)]
    if detached:  # a finite difference of the others would move gamma
        z, mu, log_var, *prior = (t.detach() for t in leaves)
        options = {"detach_responsibilities": True, "backend": backend}
        encoded = (mu.requires_grad_(), log_var.requires_grad_())
        assert torch.autograd.gradcheck(lambda m, v: vade_loss(z, m, v, *prior, **options), encoded)
        return
    assert torch.autograd.gradcheck(lambda *t: vade_loss(*t, backend=backend), leaves)


@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numba_matches(dtype, detached):
    for shape in SHAPES:
        check_vade("numba", shape, dtype, detached)


def test_same_bits_for_any_number_of_threads(set_threads):
    tensors = make_latent(20_000, 7, 5)  # several blocks
    results = []
    for threads in (1, 2, 5):
        set_threads(threads)
        results.append(loss_and_gradients(tensors))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0]))


def test_T20_strides():
    tensors = make_latent(150, 6, 5)
    expected = loss_and_gradients(tensors)
    wide = [torch.full((2 * t.shape[0], 12), math.nan) for t in tensors[:5]]
    for w, t in zip(wide, tensors):
        w[::2, ::2][:, : t.shape[1]] = t
    views = [w[::2, ::2][:, : t.shape[1]] for w, t in zip(wide, tensors)]
    for given in (views, [t.t().contiguous().t() for t in tensors[:5]]):
        got = loss_and_gradients([*given, tensors[5]])
        assert all(torch.equal(a, b) for a, b in zip(got, expected))


def test_order_of_rows_and_chunks():
    z, mu, log_var, *prior = tensors = make_latent(150, 6, 5)
    order = torch.randperm(150)
    loss, grad_z, *_ = loss_and_gradients([z[order], mu[order], log_var[order], *prior])
    expected, expected_grad, *_ = loss_and_gradients(tensors)
    assert torch.allclose(loss, expected, rtol=1e-6)
    assert torch.equal(grad_z, expected_grad[order])
    halves = [vade_loss(z[i : i + 75], mu[i : i + 75], log_var[i : i + 75], *prior) for i in (0, 75)]
    assert torch.allclose(sum(halves) / 2, expected, rtol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_T15_large_offset(backend):
    tensors = make_latent(200, 5, 4, offset=1e4)
    truth = loss_and_gradients(double(tensors), backend="reference")
    for name, got, exact in zip(("loss", *LEAVES), loss_and_gradients(tensors, backend=backend), truth):
        assert relative_error(got, exact) < 1e-5, name


@pytest.mark.parametrize("backend", BACKENDS)
def test_underflow_far_from_all_components(backend):
    z, mu, log_var, means, log_vars, logits = make_latent(70, 5, 4)
    far = [z + 1e5, mu + 1e5, log_var, means, log_vars, logits]
    truth = loss_and_gradients(double(far), backend="reference")
    for name, got, exact in zip(("loss", *LEAVES), loss_and_gradients(far, backend=backend), truth):
        assert relative_error(got, exact) < 1e-4, name


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_component_of_no_weight(backend):
    tensors = make_latent(70, 5, 4, torch.float64)
    tensors[5][2] = -math.inf
    got = loss_and_gradients(tensors, backend=backend)
    less = [*tensors[:3], *(t[[0, 1, 3, 4]] for t in tensors[3:])]
    expected = loss_and_gradients(less, backend=backend)
    for a, b in zip(got[:4], expected[:4]):
        assert torch.allclose(a, b, rtol=1e-10)
    for a, b in zip(got[4:], expected[4:]):
        assert torch.allclose(a[[0, 1, 3, 4]], b, rtol=1e-10)
        assert (a[2] == 0).all()


def test_a_row_that_is_not_finite_makes_the_loss_so():
    for name in range(3):
        tensors = make_latent(70, 5, 4)
        tensors[name][3, 1] = math.nan
        assert vade_loss(*tensors).isnan()


def test_T13_one_row_of_one_component():
    tensors = [torch.zeros(1, 1)] * 5 + [torch.zeros(1)]
    loss, *gradients = loss_and_gradients(tensors)
    assert loss == 0
    assert all((g == 0).all() for g in gradients)


# --- torch


def test_only_the_gradients_asked_for():
    tensors = make_latent(70, 4, 3)
    _, *expected = loss_and_gradients(tensors)
    for i in range(6):
        leaf = tensors[i].clone().requires_grad_()
        loss = vade_loss(*tensors[:i], leaf, *tensors[i + 1 :])
        assert torch.equal(torch.autograd.grad(loss, leaf)[0], expected[i])
    assert not vade_loss(*tensors).requires_grad


def test_retain_graph_gives_the_same_gradients_again():
    leaves = [t.requires_grad_() for t in make_latent(70, 4, 3)]
    loss = vade_loss(*leaves)
    first = [g.clone() for g in torch.autograd.grad(loss, leaves, retain_graph=True)]
    for a, b in zip(torch.autograd.grad(3 * loss, leaves), first):
        assert torch.allclose(a, 3 * b)


def test_second_derivatives_and_transforms_raise():
    leaves = [t.requires_grad_() for t in make_latent(20, 4, 3)]
    gradients = torch.autograd.grad(vade_loss(*leaves), leaves, create_graph=True)
    for gradient, leaf in zip(gradients[:5], leaves):
        with pytest.raises(RuntimeError, match="no autograd formula"):
            (gradient.square().sum() + leaf.sum()).backward(retain_graph=True)
    rest = [t.detach() for t in leaves[1:]]
    with pytest.raises(NotImplementedError, match="has no rule"):
        torch.func.grad(lambda z: vade_loss(z, *rest))(leaves[0].detach())


def test_opcheck():
    *leaves, logits = make_latent(70, 4, 3)
    leaves = [t.requires_grad_() for t in (*leaves, logits.log_softmax(0))]
    for detached in (False, True):
        torch.library.opcheck(custom_ops.LOSS["numba"], (*leaves, detached, [True] * 6))


def test_compiles_into_one_graph():
    tensors = make_latent(150, 4, 3)
    compiled = torch.compile(
        lambda z, *rest: vade_loss(z * 1.0, *rest), fullgraph=True, backend="aot_eager", dynamic=True
    )
    leaves = [t.clone().requires_grad_() for t in tensors]
    loss = compiled(*leaves)
    gradients = torch.autograd.grad(loss, leaves)
    for a, b in zip((loss.detach(), *gradients), loss_and_gradients(tensors)):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-8)


def test_half_gradients_do_not_vanish_in_large_batches():
    tensors = make_latent(20_000, 4, 3, torch.float16)
    leaves = [t.requires_grad_() for t in tensors]
    got = torch.autograd.grad(vade_loss(*leaves) * 65536.0, leaves)
    exact = loss_and_gradients(double(tensors), backend="reference")[1:]
    for a, b in zip(got[:3], exact[:3]):  # those of means are sums, whose scaled value leaves float16
        assert a.dtype == torch.float16
        assert relative_error(a.double() / 65536.0, b) < 1e-3


def test_autocast_and_mixed_dtypes():
    tensors = make_latent(70, 4, 3)
    expected = loss_and_gradients(tensors)
    with torch.autocast("cpu", torch.bfloat16):
        got = loss_and_gradients(tensors)
    assert all(torch.equal(a, b) for a, b in zip(got, expected))
    mixed = [tensors[0].bfloat16(), *tensors[1:3], tensors[3].double(), *tensors[4:]]
    got = loss_and_gradients(mixed)
    assert [t.dtype for t in got] == [torch.float64, *(t.dtype for t in mixed)]


def test_module_learns_a_mixture():
    torch.manual_seed(0)
    z = torch.cat([torch.randn(100, 2) * 0.3 - 2, torch.randn(100, 2) * 0.3 + 2])
    criterion = VaDELoss(torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))
    optimiser = torch.optim.Adam(criterion.parameters(), lr=0.1)
    log_var = torch.full_like(z, -6.0)
    for _ in range(150):
        optimiser.zero_grad()
        criterion(z, z, log_var).backward()
        optimiser.step()
    assert torch.allclose(criterion.means.detach().mean(1).sort().values, torch.tensor([-2.0, 2.0]), atol=0.15)
    assert torch.allclose(criterion.weights, torch.tensor([0.5, 0.5]), atol=0.05)
    assert (criterion.log_vars < -1.5).all()
    predicted = criterion.predict_proba(z).argmax(1)
    assert (predicted[:100] == predicted[0]).all()
    assert (predicted[100:] != predicted[0]).all()


def test_module_starts_from_a_mixture():
    means, covariances, weights = torch.randn(3, 2), torch.rand(3, 2) + 0.5, torch.tensor([0.2, 0.3, 0.5])
    criterion = VaDELoss(means, covariances, weights, detach_responsibilities=True)
    assert torch.allclose(criterion.log_vars.exp(), covariances)
    assert torch.allclose(criterion.weights, weights)
    tensors = make_latent(20, 3, 2)
    expected = vade_loss(*tensors[:3], means, covariances.log(), weights.log(), detach_responsibilities=True)
    assert torch.allclose(criterion(*tensors[:3]), expected)
    assert torch.allclose(
        criterion.predict_proba(tensors[0]),
        gmm_responsibilities(tensors[0], means, covariances, weights).responsibilities,
        atol=1e-6,
    )


# --- errors

Z, M, L = torch.zeros(5, 2), torch.zeros(3, 2), torch.zeros(3)
BAD = [
    (lambda: vade_loss(np.zeros((5, 2)), Z, Z, M, M, L), TypeError, "z must be a torch.Tensor, got ndarray"),
    (lambda: vade_loss(Z[0], Z, Z, M, M, L), ValueError, "z must be 2-D"),
    (lambda: vade_loss(Z, Z[:3], Z, M, M, L), ValueError, "mu has 3 rows but z has 5; they are the same samples"),
    (lambda: vade_loss(Z, Z, Z[:, :1], M, M, L), ValueError, "log_var has 1 features but z has 2"),
    (lambda: vade_loss(Z, Z, Z, M[:, :1], M, L), ValueError, "means has 1 features but z has 2"),
    (
        lambda: vade_loss(Z, Z, Z, M, M[:2], L),
        ValueError,
        r"log_vars must have the shape of means, \(3, 2\), got \(2, 2\)",
    ),
    (lambda: vade_loss(Z, Z, Z, M, M, L[:2]), ValueError, r"logits must have shape \(3,\), one entry for each of the"),
    (lambda: vade_loss(Z, Z, Z, M, M, L.long()), TypeError, "logits must be floating, got torch.int64"),
    (lambda: vade_loss(Z, Z, Z.to("meta"), M, M, L), ValueError, "log_var is on meta but z is on cpu"),
    (lambda: vade_loss(Z, Z, Z, M, M, L, backend="triton"), BackendError, "triton kernels need GPU tensors"),
    (lambda: VaDELoss(M, -torch.ones(3, 2)), ValueError, "covariances must be above 0"),
    (lambda: VaDELoss(M, torch.ones(3)), ValueError, r"covariances must have the shape of means, \(3, 2\), got \(3,\)"),
    (lambda: VaDELoss(M, weights=torch.ones(2)), ValueError, r"weights must have shape \(3,\)"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[message for *_, message in BAD])
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_public_names():
    assert fastdc.vade_loss is vade_loss
