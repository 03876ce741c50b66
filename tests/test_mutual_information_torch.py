"""The mutual information room under autograd, torch.compile and autocast; its errors."""

import numpy as np
import pytest
import torch

import fastdc
from fastdc.kernels import BackendError
from fastdc.kernels._accuracy import relative_error
from fastdc.kernels.mutual_information import (
    EntropyStatistics,
    conditional_entropy,
    custom_ops,
    entropy_statistics,
    iic_loss,
    iic_loss_of_joint,
    joint,
    joint_distribution,
    marginal_entropy,
    rim_loss,
    vat_kl,
)
from fastdc.losses import IICLoss, IMSATLoss
from tests.mutual_information_cases import (
    OF_LOGITS,
    OF_PROBABILITIES,
    make_logits,
    make_probabilities,
    value_and_gradient,
    vat,
)


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("shape", [(5, 3), (2, 4, 3)], ids=str)
def test_gradcheck(backend, shape):
    x = make_logits(shape, torch.float64, spread=1.0).requires_grad_()
    p = make_probabilities(shape, torch.float64).requires_grad_()
    for function in OF_LOGITS.values():
        assert torch.autograd.gradcheck(lambda x, f=function: f(x, backend), (x,))
    for function in OF_PROBABILITIES.values():
        assert torch.autograd.gradcheck(lambda p, f=function: f(p, backend), (p,))
    other = make_logits(shape, torch.float64, spread=1.0, seed=1)
    for size in (1.0, 0.01):
        fixed = x.detach() + size * other
        assert torch.autograd.gradcheck(lambda x, fixed=fixed: vat_kl(fixed, x, backend=backend), (x,))


def test_gradcheck_of_joints():
    p1, p2 = (make_probabilities((2, 6, 3), torch.float64, seed=s).requires_grad_() for s in (0, 1))
    few = make_probabilities((2, 6, 2), torch.float64, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(joint_distribution, (p1, p2))
    assert torch.autograd.gradcheck(lambda a, b: joint_distribution(a, b, symmetric=False), (p1, few))
    assert torch.autograd.gradcheck(lambda a, b: iic_loss(a, b, 1.3, reduction="none"), (p1, p2))


def test_only_the_second_of_vat_gets_a_gradient():
    logits, perturbed = make_logits((20, 4)).requires_grad_(), make_logits((20, 4), seed=1).requires_grad_()
    for backend in ("reference", "numba"):
        logits.grad = perturbed.grad = None
        vat_kl(logits, perturbed, backend=backend).backward()
        assert logits.grad is None
        assert perturbed.grad is not None
        assert not vat_kl(logits, perturbed.detach(), backend=backend).requires_grad


def test_only_the_gradients_asked_for():
    p1, p2 = make_probabilities((50, 4)).requires_grad_(), make_probabilities((50, 4), seed=1).requires_grad_()
    both = torch.autograd.grad(iic_loss(p1, p2), (p1, p2))
    for i, (a, b) in enumerate([(p1, p2.detach()), (p1.detach(), p2)]):
        loss = iic_loss(a, b)
        assert torch.equal(torch.autograd.grad(loss, (p1, p2)[i])[0], both[i])


def test_retain_graph_gives_the_same_gradients_again():
    x, other = make_logits((100, 6)).requires_grad_(), make_logits((100, 6), seed=1)
    for function in (*OF_LOGITS.values(), vat(other)):
        loss = function(x, "numba")
        first = torch.autograd.grad(loss, x, retain_graph=True)[0]
        copy = first.clone()
        second = torch.autograd.grad(3 * loss, x)[0]
        assert torch.equal(first, copy)
        assert torch.allclose(second, 3 * first)


def test_second_derivatives_raise():
    x = make_logits((20, 4)).requires_grad_()
    p = make_probabilities((20, 4)).requires_grad_()
    losses = [*(f(x, "numba") for f in OF_LOGITS.values()), vat(x.detach() + 1.0)(2 * x, "numba")]
    for loss, leaf in [*((loss, x) for loss in losses), (iic_loss(p, p.detach()), p)]:
        (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
        with pytest.raises(RuntimeError, match="no autograd formula"):
            (gradient.square().sum() + leaf.sum()).backward()


@pytest.mark.parametrize("op", [conditional_entropy, marginal_entropy, rim_loss], ids=lambda f: f.__name__)
def test_transforms_without_a_rule_raise(op):
    x = make_logits((20, 4))
    for function in (op, lambda x: vat_kl(x + 1.0, x), lambda x: iic_loss(x, x)):
        with pytest.raises(NotImplementedError, match="has no rule"):
            torch.func.grad(function)(x)
        with pytest.raises(NotImplementedError, match="has no rule"):
            torch.func.jvp(function, (x,), (torch.ones_like(x),))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap():
    batch = make_logits((3, 20, 4))
    for function in (rim_loss, lambda x: vat_kl(batch[0], x), lambda x: iic_loss(x, batch[0].softmax(1))):
        x = batch.softmax(2)
        assert torch.allclose(torch.func.vmap(function)(x), torch.stack([function(row) for row in x]), rtol=1e-5)


def test_opcheck():
    x = make_logits((2, 70, 6)).requires_grad_()
    p = make_probabilities((2, 70, 6)).requires_grad_()
    for want in (True, False):
        torch.library.opcheck(custom_ops.ENTROPY_ROWS["numba"], (x, True, want))
        torch.library.opcheck(custom_ops.ENTROPY_ROWS["numba"], (p, False, want))
    torch.library.opcheck(custom_ops.VAT_KL["numba"], (x, x.detach() + 1.0, True))
    torch.library.opcheck(joint.joint_sum, (p, p.detach()[..., :3].clone()))


def test_compiles_into_one_graph():
    x, other = make_logits((2, 150, 6)), make_logits((2, 150, 6), seed=1)

    def training_loss(x):
        p, q = (x * 1.0).softmax(-1), other.softmax(-1)
        statistics = entropy_statistics(x, from_logits=True)
        entropies = rim_loss(x).sum() + conditional_entropy(p).sum() + marginal_entropy(p).mean()
        return entropies + vat_kl(other, x * 1.0) + iic_loss(p, q) + 0.0 * statistics.entropy_sum.sum()

    compiled = torch.compile(training_loss, fullgraph=True, backend="aot_eager", dynamic=True)
    (value, gradient), (eager, eager_gradient) = (value_and_gradient(f, x) for f in (compiled, training_loss))
    assert torch.allclose(value, eager, rtol=1e-6)
    assert torch.allclose(gradient, eager_gradient, rtol=1e-5, atol=1e-8)


def test_backend_switch_recompiles():
    x = make_logits((50, 4))
    compiled = torch.compile(lambda x: rim_loss(x), fullgraph=True, backend="eager")
    first = compiled(x)
    with fastdc.use_backend("reference"):
        second = compiled(x)
    assert torch.allclose(first, second, rtol=1e-5)


def test_autocast_does_not_round_the_products():
    p1, p2 = make_probabilities((300, 6)).requires_grad_(), make_probabilities((300, 6), seed=1).requires_grad_()
    exact = torch.autograd.grad(iic_loss(p1, p2), (p1, p2))
    with torch.autocast("cpu", torch.bfloat16):
        loss = iic_loss(p1, p2)
        assert loss.dtype == torch.float32
        gradients = torch.autograd.grad(loss, (p1, p2))
    assert all(torch.equal(a, b) for a, b in zip(gradients, exact))


def test_half_gradients_do_not_vanish_in_large_batches():
    x = make_logits((20_000, 6), torch.float16)
    other = make_logits((20_000, 6), torch.float16, seed=1)
    p, q = x.softmax(1), other.softmax(1)
    for function, leaf in [
        *((f, x) for f in OF_LOGITS.values()),
        (vat(other), x),
        (lambda p, backend: iic_loss(p, q.to(p.dtype)), p),
    ]:
        _, got = value_and_gradient(lambda x, b, f=function: f(x, b) * 65536.0, leaf, "numba")
        _, exact = value_and_gradient(function, leaf.double(), "reference")
        assert got.dtype == torch.float16
        assert relative_error(got.double() / 65536.0, exact) < 1e-3


def test_views_of_different_dtypes():
    x, other = make_logits((40, 5)), make_logits((40, 5), torch.bfloat16, seed=1)
    value, gradient = value_and_gradient(lambda b: vat_kl(x, b), other)
    assert (value.dtype, gradient.dtype) == (torch.float32, torch.bfloat16)
    assert torch.allclose(value, vat_kl(x, other.float()), rtol=1e-6)
    value, gradient = value_and_gradient(lambda q: iic_loss(x.softmax(1), q), other.softmax(1))
    assert (value.dtype, gradient.dtype) == (torch.float32, torch.bfloat16)


def test_T25_inference_mode_and_detached_results():
    x = make_logits((20, 4))
    with torch.inference_mode():
        assert rim_loss(x).isfinite()
        assert vat_kl(x, x + 1.0).isfinite()
        assert iic_loss(x.softmax(1), x.softmax(1)).isfinite()
    statistics = entropy_statistics(x.requires_grad_(), from_logits=True)
    assert not statistics.mass.requires_grad
    assert not statistics.entropy_sum.requires_grad


def test_modules():
    x, other = make_logits((60, 5)), make_logits((60, 5), seed=1)
    p, q = x.softmax(1), other.softmax(1)
    assert torch.equal(IICLoss(lamb=1.2)(p, q), iic_loss(p, q, 1.2))
    assert torch.equal(IICLoss(from_logits=True)(x, other), iic_loss(p, q))
    criterion = IMSATLoss(weight=0.1, marginal_weight=4.0)
    assert torch.allclose(criterion(x), 0.1 * rim_loss(x, 4.0))
    assert torch.allclose(criterion(x, other), vat_kl(x, other) + 0.1 * rim_loss(x, 4.0))
    leaf = x.clone().requires_grad_()
    criterion(leaf, other).backward()
    _, expected = value_and_gradient(lambda x: 0.1 * rim_loss(x, 4.0), x)
    assert torch.allclose(leaf.grad, expected, rtol=1e-6)  # the clean predictions are VAT's constant


# --- errors

P = torch.full((3, 2), 0.5)
BAD = [
    (lambda: conditional_entropy(np.zeros((3, 2))), TypeError, "p must be a torch.Tensor, got ndarray"),
    (
        lambda: marginal_entropy(torch.zeros(3)),
        ValueError,
        r"p must have shape \(n_samples, n_clusters\) or \(n_heads, n_samples, n_clusters\), got shape \(3,\)",
    ),
    (lambda: rim_loss(P.long()), TypeError, r"logits must be float32, float64, float16 or bfloat16, got torch.int64"),
    (lambda: rim_loss(P[:0]), ValueError, r"logits is empty, shape \(0, 2\)"),
    (lambda: rim_loss(P, -1.0), ValueError, "marginal_weight must be a finite number, 0 or above, got -1.0"),
    (lambda: rim_loss(P, backend="cuda"), ValueError, "backend must be one of"),
    (lambda: vat_kl(P, P, backend="triton"), BackendError, "triton kernels need GPU tensors"),
    (
        lambda: vat_kl(P, P[:2]),
        ValueError,
        r"perturbed_logits has shape \(2, 2\) but logits has \(3, 2\); they are two views of the same rows",
    ),
    (
        lambda: vat_kl(P, torch.zeros(3, 4)),
        ValueError,
        "perturbed_logits has 4 clusters but logits has 2; both need the same",
    ),
    (lambda: iic_loss(P, P[None]), ValueError, r"p2 has shape \(1, 3, 2\) but p1 has \(3, 2\)"),
    (lambda: joint_distribution(P, torch.zeros(3, 4)), ValueError, "p2 has 4 clusters but p1 has 2"),
    (lambda: iic_loss(P, P.to("meta")), ValueError, r"p2 is on meta but p1 is on cpu; move one with .to\(...\)"),
    (lambda: iic_loss(P, P, lamb=float("nan")), ValueError, "lamb must be a finite number, 0 or above, got nan"),
    (lambda: iic_loss(P, P, eps=-1.0), ValueError, "eps must be a finite number, 0 or above"),
    (lambda: iic_loss(P, P, reduction="sum"), ValueError, r"reduction must be one of \('mean', 'none'\), got 'sum'"),
    (lambda: iic_loss_of_joint(P[0]), ValueError, r"joint must have shape \(..., n_clusters, n_clusters\)"),
    (lambda: iic_loss_of_joint([0.5]), TypeError, "joint must be a torch.Tensor, got list"),
    (lambda: EntropyStatistics.merge([]), ValueError, "at least one chunk"),
    (lambda: IMSATLoss(weight=-1.0), ValueError, "weight must be a finite number, 0 or above"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[message for *_, message in BAD])
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
