"""The Student t room under autograd, torch.compile and autocast."""

import pytest
import torch

import fastdc
from fastdc.kernels._accuracy import relative_error
from fastdc.kernels.student_t import (
    custom_ops,
    dec_loss,
    numba_kernel,
    student_t_assign,
    student_t_statistics,
)
from tests.student_t_cases import (
    loss_and_gradients,
    make_points,
)


def test_gradients_are_computed_only_where_needed(monkeypatch):
    x, centers = make_points(100, 6, 20)
    flags = []
    original = numba_kernel.dec_loss
    monkeypatch.setattr(numba_kernel, "dec_loss", lambda *args: (flags.append(args[-2:]), original(*args))[1])
    dec_loss(x.requires_grad_(), centers).backward()
    dec_loss(x.detach(), centers.requires_grad_()).backward()
    with torch.no_grad():
        dec_loss(x, centers)
    assert flags == [(True, False), (False, True), (False, False)]


def test_retain_graph_gives_the_same_gradients_again():
    x, centers = make_points(100, 6, 20)
    x.requires_grad_()
    loss = dec_loss(x, centers)
    first = torch.autograd.grad(loss, x, retain_graph=True)[0]
    copy = first.clone()
    second = torch.autograd.grad(3 * loss, x)[0]
    assert torch.equal(first, copy)
    assert torch.allclose(second, 3 * first)


def test_second_derivatives_raise():
    x, centers = make_points(20, 3, 4)
    x.requires_grad_()
    (grad,) = torch.autograd.grad(dec_loss(x, centers), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        (grad.square().sum() + x.sum()).backward()


@pytest.mark.parametrize("op", [dec_loss, student_t_assign], ids=lambda f: f.__name__)
def test_transforms_without_a_rule_raise(op):
    x, centers = make_points(20, 3, 4)
    with pytest.raises(NotImplementedError, match="has no rule"):
        torch.func.grad(lambda x: op(x, centers).sum())(x)
    with pytest.raises(NotImplementedError, match="has no rule"):
        torch.func.jvp(lambda x: op(x, centers), (x,), (torch.ones_like(x),))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap():
    _, centers = make_points(20, 3, 4)
    batch = torch.randn(3, 20, 4)
    losses = torch.func.vmap(lambda x: dec_loss(x, centers))(batch)
    assert torch.allclose(losses, torch.stack([dec_loss(x, centers) for x in batch]))


def test_opcheck():
    x, centers = make_points(70, 6, 20)
    x.requires_grad_(), centers.requires_grad_()
    frequency = torch.rand(6) + 1
    scalars = [1.0, 2.0, 1.0, 70.0]
    for target in ((None, None, None, None), (None, x.detach(), centers.detach(), frequency)):
        torch.library.opcheck(custom_ops.DEC_LOSS["numba"], (x, centers, *target, scalars, "ieee", True, True))
    torch.library.opcheck(custom_ops.ASSIGN["numba"], (x, centers, 1.0, "ieee"))
    torch.library.opcheck(custom_ops.STATISTICS["numba"], (x.detach(), centers.detach(), 1.0, None, "ieee"))
    torch.library.opcheck(custom_ops.TARGET["numba"], (torch.rand(9, 6), frequency, 2.0, 1.0))


def test_compiles_into_one_graph():
    x, centers = make_points(150, 6, 20)

    def training_loss(x, centers):
        labels = student_t_statistics(x, centers).labels
        return dec_loss(x * 1.0, centers) + student_t_assign(x, centers).square().mean() + 0.0 * labels.sum()

    compiled = torch.compile(training_loss, fullgraph=True, backend="aot_eager", dynamic=True)
    gradients = []
    for function in (training_loss, compiled):
        a, b = x.clone().requires_grad_(), centers.clone().requires_grad_()
        function(a, b).backward()
        gradients.append((a.grad, b.grad))
    for eager, graph in zip(*gradients):
        assert torch.allclose(eager, graph, rtol=1e-6)


def test_backend_switch_recompiles():
    x, centers = make_points(50, 3, 4)
    compiled = torch.compile(lambda x, c: dec_loss(x, c), fullgraph=True, backend="eager")
    first = compiled(x, centers)
    with fastdc.use_backend("reference"):
        second = compiled(x, centers)
    assert torch.allclose(first, second, rtol=1e-5)


def test_autocast_and_loss_scale():
    x, centers = make_points(100, 6, 20)
    weight = torch.eye(20, requires_grad=True)
    centers.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        z = x @ weight
        loss = dec_loss(z, centers)
    assert z.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    (loss * 65536.0).backward()
    assert weight.grad.dtype == centers.grad.dtype == torch.float32
    _, _, exact = loss_and_gradients(z.detach().float(), centers, "reference")
    assert relative_error(centers.grad / 65536.0, exact) < 1e-5


def test_half_gradients_do_not_vanish_in_large_batches():
    x, centers = make_points(20000, 4, 6, torch.float16)
    x.requires_grad_()
    (dec_loss(x, centers) * 65536.0).backward()
    _, exact, _ = loss_and_gradients(x.detach().double(), centers.double(), "reference")
    assert relative_error(x.grad.double() / 65536.0, exact) < 1e-3
