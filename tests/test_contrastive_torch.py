"""The contrastive losses under autograd, torch.compile and autocast; as modules; their errors."""

import numpy as np
import pytest
import torch

from fastdc.kernels import BackendError
from fastdc.kernels._accuracy import relative_error
from fastdc.kernels.contrastive import custom_ops, info_nce, nt_xent, sup_con
from fastdc.losses import InfoNCELoss, NTXentLoss, SupConLoss
from tests.contrastive_cases import LOSSES, loss_and_gradients, make_inputs, make_views, plain_nt_xent


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_computed_only_where_needed(name):
    tensors, constants = make_inputs(name, 100, 9)
    _, *expected = loss_and_gradients(LOSSES[name][0], tensors, constants)
    for place, exact in enumerate(expected):
        leaves = [t.clone().requires_grad_(i == place) for i, t in enumerate(tensors)]
        LOSSES[name][0](*leaves, *constants).backward()
        assert torch.equal(leaves[place].grad, exact)
    with torch.no_grad():
        assert not LOSSES[name][0](*leaves, *constants).requires_grad


@pytest.mark.parametrize("name", LOSSES)
def test_retain_graph_and_second_derivatives(name):
    tensors, constants = make_inputs(name, 40, 6)
    x, *others = tensors
    x.requires_grad_()
    loss = LOSSES[name][0](x, *others, *constants)
    first = torch.autograd.grad(loss, x, retain_graph=True)[0].clone()
    assert torch.equal(torch.autograd.grad(4 * loss, x)[0], 4 * first)
    (gradient,) = torch.autograd.grad(LOSSES[name][0](x, *others, *constants), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        gradient.square().sum().backward()
    with pytest.raises(NotImplementedError, match="has no rule"):
        torch.func.grad(lambda z: LOSSES[name][0](z, *others, *constants))(x.detach())


def test_keys_may_change_between_the_loss_and_its_gradient():
    z, queue = make_views(40, 6)
    expected = torch.autograd.grad(info_nce(z.requires_grad_(), z.detach(), extra_keys=queue), z)[0]
    loss = info_nce(z, z.detach(), extra_keys=queue)
    queue[:10] = z[:10].detach()  # as a queue or a memory bank does before the backward pass
    loss.backward(retain_graph=True)
    assert torch.equal(z.grad, expected)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()  # its gradients are gone, and those of now would be others


def test_opcheck():
    anchors, keys = (t.requires_grad_() for t in make_views(70, 20))
    op, places = custom_ops.CONTRAST["numba"], torch.arange(70)
    torch.library.opcheck(op, (anchors, keys, places, 2.0, [-1, 70], "ieee"))
    torch.library.opcheck(op, (anchors, None, None, 2.0, [-1, 0], "ieee"))
    torch.library.opcheck(op, (anchors, keys[:30].detach().requires_grad_(), None, 2.0, [10, 0], "ieee"))
    loss = custom_ops.contrast_loss_numba
    torch.library.opcheck(loss, (anchors, keys, None, None, 2.0, [True, True, False], [True, True, False]))
    torch.library.opcheck(loss, (anchors, keys, keys.detach(), None, 2.0, [True, False, True], [True, True, False]))
    few = keys[:9].detach().requires_grad_()
    torch.library.opcheck(loss, (anchors, few, None, places % 9, 2.0, [True, False, False], [True, True, False]))
    torch.library.opcheck(custom_ops.same_label_sums, (anchors, places % 7, places[:30] % 9))


@pytest.mark.parametrize("name", LOSSES)
def test_compiles_into_one_graph(name):
    fused = LOSSES[name][0]
    compiled = torch.compile(
        lambda *t: fused(*(x * 1.0 if x.is_floating_point() else x for x in t)),
        fullgraph=True,
        backend="aot_eager",
        dynamic=True,
    )
    for n in (90, 41):
        tensors, constants = make_inputs(name, n, 12)
        expected = loss_and_gradients(fused, tensors, constants)
        for a, b in zip(loss_and_gradients(compiled, tensors, constants), expected):
            assert torch.allclose(a, b, rtol=1e-5, atol=1e-8)


def test_autocast_and_a_loss_scale():
    z1, z2 = make_views(100, 20)
    weight = torch.eye(20, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = nt_xent(z1 @ weight, z2 @ weight)
    assert loss.dtype == torch.float32
    (loss * 65536.0).backward()
    exact = loss_and_gradients(
        lambda w: plain_nt_xent((z1.bfloat16().double() @ w), (z2.bfloat16().double() @ w)), [torch.eye(20).double()]
    )
    assert relative_error(weight.grad / 65536.0, exact[1]) < 0.02
    for scale in (2.0**60, 2.0**-60):  # nothing is flushed to zero or overflows on the way
        x = z1.clone().requires_grad_()
        (nt_xent(x, z2) * scale).backward()
        reference = torch.autograd.grad(nt_xent(x, z2), x)[0]
        assert torch.allclose(x.grad / scale, reference, rtol=1e-6, atol=0)


def test_modules():
    z1, z2 = make_views(30, 5)
    assert torch.equal(NTXentLoss(0.2)(z1, z2), nt_xent(z1, z2, 0.2))
    features = torch.stack([z1, z2], dim=1)
    expected = nt_xent(z1, z2, 0.2)  # what the supervised loss is with one label a sample
    assert torch.allclose(SupConLoss(0.2)(features), expected, rtol=1e-5)
    assert torch.allclose(SupConLoss(0.2, base_temperature=0.1)(features), 2 * expected, rtol=1e-5)
    labels = torch.arange(30) % 4
    flat = sup_con(torch.cat([z1, z2]), labels.repeat(2), 0.07)
    assert torch.allclose(SupConLoss()(features, labels), flat, rtol=1e-5)
    with pytest.raises(ValueError, match=r"labels is None, which needs features of shape \(n_samples, n_views"):
        SupConLoss()(z1)


def test_memory_bank():
    criterion = InfoNCELoss(0.2, symmetric=False, memory_bank_size=50)
    batches = [make_views(20, 5, seed=seed) for seed in range(5)]
    seen = []
    for queries, keys in batches:
        bank = torch.cat(seen[::-1])[:50] if seen else None
        assert torch.equal(criterion(queries, keys), info_nce(queries, keys, 0.2, False, bank))
        seen.append(keys)
    bank = criterion.memory_bank.clone()
    assert len(bank) == 50
    criterion.eval()(*batches[0])
    assert torch.equal(criterion.memory_bank, bank)
    with pytest.raises(ValueError, match="memory_bank_size must be 0 or above, got -1"):
        InfoNCELoss(memory_bank_size=-1)
    with pytest.raises(ValueError, match="exclude each other"):
        InfoNCELoss(memory_bank_size=5, gather_distributed=True)


BAD = [
    (nt_xent, (np.zeros((3, 2)), torch.zeros(3, 2)), {}, TypeError, "z1 must be a torch.Tensor, got ndarray"),
    (
        nt_xent,
        (torch.zeros(3), torch.zeros(3, 2)),
        {},
        ValueError,
        r"z1 must be 2-D, of shape \(n_samples, n_features\)",
    ),
    (nt_xent, (torch.zeros(3, 2), torch.zeros(4, 2)), {}, ValueError, "z1 has 3 rows but z2 has 4; they are two views"),
    (nt_xent, (torch.zeros(3, 2), torch.zeros(3, 5)), {}, ValueError, "z2 has 5 features but z1 has 2"),
    (
        nt_xent,
        (torch.zeros(3, 2),) * 2,
        {"temperature": 0.0},
        ValueError,
        "temperature must be a finite number above 0",
    ),
    (nt_xent, (torch.zeros(3, 2),) * 2, {"precision": "tf32"}, ValueError, "precision 'tf32' needs the triton backend"),
    (nt_xent, (torch.zeros(3, 2),) * 2, {"backend": "triton"}, BackendError, "triton kernels need GPU tensors"),
    (nt_xent, (torch.zeros(3, 2),) * 2, {"group": 1}, RuntimeError, "group needs torch.distributed"),
    (info_nce, (torch.zeros(3, 2), torch.zeros(2, 2)), {}, ValueError, "queries has 3 rows but keys has 2"),
    (
        info_nce,
        (torch.zeros(3, 2),) * 2,
        {"extra_keys": torch.zeros(4, 3)},
        ValueError,
        "extra_keys has 3 features but queries has 2",
    ),
    (sup_con, (torch.zeros(3, 2), torch.zeros(2).long()), {}, ValueError, r"labels must have shape \(3,\)"),
    (sup_con, (torch.zeros(3, 2), torch.zeros(3)), {}, TypeError, "labels must be int64, got torch.float32"),
    (sup_con, (torch.zeros(1, 2), torch.zeros(1).long()), {}, ValueError, "z has 1 row; a contrastive loss needs"),
]


@pytest.mark.parametrize(("function", "given", "options", "error", "message"), BAD)
def test_bad_input(function, given, options, error, message):
    with pytest.raises(error, match=message):
        function(*given, **options)
