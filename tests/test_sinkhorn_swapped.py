"""The swapped prediction loss: values, gradients, and its ways with torch."""

import math

import numpy as np
import pytest
import torch

import fastdc
from fastdc.kernels._accuracy import assert_not_worse_than_torch, relative_error
from fastdc.kernels.sinkhorn import custom_ops, numba_held, numba_swapped, swapped_prediction_loss
from fastdc.kernels.sinkhorn.numba_stored import find_factors
from fastdc.losses import SwAVLoss
from tests.sinkhorn_cases import DTYPES, fused, loss_and_gradients, make_views, plain_assign, plain_swapped

SHAPES = [(1, 2, 3), (7, 3, 5), (65, 20, 10), (130, 300, 33), (257, 50, 64)]  # n_samples, n_prototypes, n_features
NAMES = ("loss", "z1", "z2", "prototypes")


def name_shape(shape):
    return "N{}-K{}-D{}".format(*shape)


def check(make_case, dtype=torch.float32, seeds=4, **options):
    """Loss and all gradients against those of torch in the same dtype and in float64, over several draws."""
    working = torch.float64 if dtype == torch.float64 else torch.float32
    results = []
    for seed in range(seeds):
        tensors = make_case(seed)
        truth = loss_and_gradients(plain_swapped, *(t.double() for t in tensors), **options)
        plain = loss_and_gradients(plain_swapped, *(t.to(working) for t in tensors), **options)
        got = loss_and_gradients(fused("numba"), *tensors, **options)
        results.append([(g, p.to(g.dtype), t) for g, p, t in zip(got, plain, truth)])
    assert got[0].dtype == working
    assert [g.dtype for g in got[1:]] == [dtype] * 3
    for name, factor, cases in zip(NAMES, (2, 3, 3, 3), zip(*results)):
        assert_not_worse_than_torch(cases, factor=factor, dtype=dtype, name=name)


def test_by_hand():
    # both rows lie on their own prototype: codes and predictions are (e^s, 1) / (e^s + 1), s = 1 / epsilon, 1 / T
    z = torch.eye(2)
    code, prediction = (torch.tensor([s, 0.0]).softmax(0) for s in (2.0, 4.0))
    expected = -(code * prediction.log()).sum()
    for backend in ("reference", "numba"):
        loss = swapped_prediction_loss(z, z, torch.eye(2), temperature=0.25, epsilon=0.5, backend=backend)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_reference_is_swavs_formula():
    tensors = make_views(60, 12, 8, torch.float64)
    plain = loss_and_gradients(plain_swapped, *tensors)
    for got, exact in zip(loss_and_gradients(fused("reference"), *tensors), plain):
        assert relative_error(got, exact) < 1e-12


@pytest.mark.parametrize("shape", SHAPES, ids=name_shape)
@pytest.mark.parametrize("options", [{}, {"temperature": 0.3, "epsilon": 0.01, "n_iters": 1}], ids=str)
def test_matches(shape, options):
    check(lambda seed: make_views(*shape, seed=seed), **options)


@pytest.mark.parametrize("shape", [(512, 100, 128), (256, 300, 128)], ids=name_shape)
@pytest.mark.parametrize("most_rows", [numba_held.MOST_ROWS, 0], ids=["held", "streamed"])
@pytest.mark.parametrize("noise", [0.02, 0.4])
def test_predictions_near_one(shape, most_rows, noise, monkeypatch):
    """Gradients are what a prediction lacks of one: the many small exponentials must not be lost beside the largest."""
    monkeypatch.setattr(numba_held, "MOST_ROWS", most_rows)
    check(lambda seed: make_views(*shape, seed=seed, noise=noise), seeds=20)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_matches_in_every_dtype(dtype):
    check(lambda seed: make_views(130, 40, 24, dtype, seed), dtype)


def test_float64_stays_float64():
    tensors = make_views(130, 40, 24, torch.float64)
    exact = loss_and_gradients(plain_swapped, *tensors)
    for got, expected in zip(loss_and_gradients(fused("numba"), *tensors), exact):
        assert got.dtype == torch.float64
        assert relative_error(got, expected) < 1e-13


def test_one_prototype_leaves_nothing_to_predict():
    for result in loss_and_gradients(fused("numba"), *make_views(70, 1, 3)):
        assert result.abs().max() < 1e-6


@pytest.mark.parametrize("epsilon", [1e-3, 1e-4])
def test_hard_codes(epsilon):
    """Columns underflow in a step and are summed again."""
    check(lambda seed: make_views(200, 60, 20, seed=seed), epsilon=epsilon, n_iters=5)


def test_gradcheck():
    """Codes are constants: near them the loss is that with the codes held."""
    z1, z2, prototypes = make_views(6, 4, 3, torch.float64)
    from fastdc.kernels.sinkhorn import sinkhorn_assign

    q1, q2 = (sinkhorn_assign(z @ prototypes.T) for z in (z1, z2))

    def held(z1, z2, prototypes):
        p1, p2 = ((z @ prototypes.T / 0.1).log_softmax(1) for z in (z1, z2))
        return -((q2 * p1).sum(1) + (q1 * p2).sum(1)).mean() / 2

    tensors = [t.requires_grad_() for t in (z1, z2, prototypes)]
    assert torch.autograd.gradcheck(held, tensors)
    got = loss_and_gradients(fused("numba"), *tensors)
    for a, b in zip(got, loss_and_gradients(held, *tensors)):
        assert relative_error(a, b) < 1e-12


def test_T44_threads_do_not_change_a_bit(set_threads):
    tensors = make_views(1500, 70, 20)
    results = []
    for threads in (1, 2, 3):
        set_threads(threads)
        results.append(loss_and_gradients(fused("numba"), *tensors))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0]))


def test_T20_strides_and_row_order():
    z1, z2, prototypes = make_views(150, 30, 12)
    expected = loss_and_gradients(fused("numba"), z1, z2, prototypes)
    wide = torch.zeros(300, 24)
    wide[::2, ::2] = z1
    strided = wide[::2, ::2], z2.t().contiguous().t(), prototypes.t().contiguous().t()
    assert torch.equal(swapped_prediction_loss(*strided), expected[0])
    order = torch.randperm(150)
    permuted = loss_and_gradients(fused("numba"), z1[order], z2[order], prototypes)
    assert relative_error(permuted[0], expected[0]) < 1e-6
    assert relative_error(permuted[1], expected[1][order]) < 1e-5
    assert relative_error(permuted[3], expected[3]) < 1e-5


def test_results_are_written_whole(monkeypatch):
    original = np.empty

    def poisoned(shape, dtype=float, **options):
        array = original(shape, dtype, **options)
        array.fill(np.nan)
        return array

    tensors = make_views(131, 20, 7)
    monkeypatch.setattr(np, "empty", poisoned)
    assert all(bool(torch.isfinite(t).all()) for t in loss_and_gradients(fused("numba"), *tensors))


def test_nan_is_not_hidden():
    z1, z2, prototypes = make_views(80, 6, 4)
    z1[70, 2] = math.nan
    assert swapped_prediction_loss(z1, z2, prototypes).isnan()


# --- torch


def test_gradients_are_computed_only_where_needed():
    z1, z2, prototypes = make_views(100, 9, 8)
    _, grad1, grad2, grad_prototypes = loss_and_gradients(fused("numba"), z1, z2, prototypes)
    for position, exact in enumerate((grad1, grad2, grad_prototypes)):
        tensors = [z1, z2, prototypes]
        tensors[position] = tensors[position].clone().requires_grad_()
        swapped_prediction_loss(*tensors).backward()
        assert torch.equal(tensors[position].grad, exact)
    with torch.no_grad():
        assert not swapped_prediction_loss(*tensors).requires_grad


def test_retain_graph_and_second_derivatives():
    z1, z2, prototypes = make_views(40, 5, 6)
    z1.requires_grad_()
    loss = swapped_prediction_loss(z1, z2, prototypes)
    first = torch.autograd.grad(loss, z1, retain_graph=True)[0].clone()
    assert torch.allclose(torch.autograd.grad(3 * loss, z1)[0], 3 * first)
    (grad,) = torch.autograd.grad(swapped_prediction_loss(z1, z2, prototypes), z1, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        (grad.square().sum() + z1.sum()).backward()
    with pytest.raises(NotImplementedError, match="has no rule"):
        torch.func.grad(lambda z: swapped_prediction_loss(z, z2, prototypes))(z1.detach())


def test_opcheck():
    tensors = [t.requires_grad_() for t in make_views(70, 6, 20)]
    queue = torch.randn(2, 9, 20)
    for given in (None, queue):
        options = (given, [0.1, 0.05, 3.0, 1 / 70], [True, True, True], "")
        torch.library.opcheck(custom_ops.swapped_prediction_loss_numba, (*tensors, *options))


def test_compiles_into_one_graph():
    tensors = make_views(90, 8, 12)
    compiled = torch.compile(
        lambda *t: swapped_prediction_loss(*(x * 1.0 for x in t)), fullgraph=True, backend="aot_eager", dynamic=True
    )
    for a, b in zip(loss_and_gradients(compiled, *tensors), loss_and_gradients(fused("numba"), *tensors)):
        assert torch.allclose(a, b, rtol=1e-6)


def test_autocast():
    z1, z2, prototypes = make_views(100, 6, 20)
    weight = torch.eye(20, requires_grad=True)
    prototypes.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = swapped_prediction_loss(z1 @ weight, z2 @ weight, prototypes)
    assert loss.dtype == torch.float32
    (loss * 65536.0).backward()
    assert weight.grad.dtype == prototypes.grad.dtype == torch.float32
    exact = loss_and_gradients(plain_swapped, z1.bfloat16().float(), z2.bfloat16().float(), prototypes.detach())
    assert relative_error(prototypes.grad / 65536.0, exact[3]) < 1e-4


def test_module_normalises_and_learns():
    torch.manual_seed(0)
    z1, z2, _ = make_views(200, 10, 16)
    criterion = SwAVLoss(16, 10)
    assert criterion.prototypes.shape == (10, 16)
    unit = torch.nn.functional.normalize
    expected = fastdc.swapped_prediction_loss(z1, z2, unit(criterion.prototypes))
    assert criterion(3 * z1, z2 * 0.5).item() == pytest.approx(expected.item(), rel=1e-5)
    optimiser = torch.optim.SGD(criterion.parameters(), lr=2.0)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = criterion(z1, z2)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


# --- small batches, and the queue


@pytest.mark.parametrize("shape", [(130, 300, 33), (70, 1500, 20), (1100, 40, 16)], ids=name_shape)
def test_held_is_streamed(shape, monkeypatch):
    """Both ways to the same loss: scores held, and made again in each pass."""
    tensors = make_views(*shape)
    held = loss_and_gradients(fused("numba"), *tensors)
    monkeypatch.setattr(numba_held, "MOST_ROWS", 0)
    streamed = loss_and_gradients(fused("numba"), *tensors)
    for a, b in zip(held, streamed):
        assert relative_error(a, b) < 5e-6
        assert not torch.equal(a, b) or a.ndim == 0


@pytest.mark.parametrize("n_lost", [0, 1, 100])
def test_potentials_beyond_float32_leave_what_is_held(n_lost, monkeypatch):
    """Where the scalings do not fit, in a step or for the loss, the passes over the embeddings take over."""
    tensors = make_views(100, 30, 8)
    expected = loss_and_gradients(fused("numba"), *tensors)
    calls = []

    def lost(potential, dtype):
        calls.append(potential)
        return None if len(calls) <= n_lost else find_factors(potential, dtype)

    monkeypatch.setattr(numba_held, "SERIAL", 0)
    monkeypatch.setattr(numba_held, "find_factors", lost)
    monkeypatch.setattr(numba_swapped, "find_factors", lost)
    got = loss_and_gradients(fused("numba"), *tensors)
    assert len(calls) == 6  # two steps and one loss of two views
    for a, b in zip(got, expected):
        assert relative_error(a, b) < 2e-6


def test_iterations_on_one_thread_are_those_of_many(monkeypatch):
    """A view's iterations in one call, and pass by pass; a scaling that float32 has not goes the second way."""
    tensors = make_views(100, 30, 8)
    expected = loss_and_gradients(fused("numba"), *tensors)
    for name, value in (("LEAST", 2.0), ("SERIAL", 0)):
        with monkeypatch.context() as patch:
            patch.setattr(numba_held, name, value)
            for a, b in zip(loss_and_gradients(fused("numba"), *tensors), expected):
                assert relative_error(a, b) < 2e-6


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("epsilon", [0.05, 1e-3])
def test_queue_balances_codes_but_has_no_loss(backend, epsilon):
    z1, z2, prototypes = make_views(70, 20, 12, torch.float64)
    queue = torch.stack(make_views(90, 20, 12, torch.float64, seed=3)[:2])

    def plain(z1, z2, prototypes):
        s1, s2 = (z @ prototypes.T for z in (z1, z2))
        q1, q2 = (
            plain_assign(torch.cat([m @ prototypes.T, s]).detach(), epsilon)[-70:] for m, s in zip(queue, (s1, s2))
        )
        p1, p2 = ((s / 0.1).log_softmax(1) for s in (s1, s2))
        return -((q2 * p1).sum(1) + (q1 * p2).sum(1)).mean() / 2

    exact = loss_and_gradients(plain, z1, z2, prototypes)
    got = loss_and_gradients(fused(backend), z1, z2, prototypes, queue=queue.requires_grad_(), epsilon=epsilon)
    for a, b in zip(got, exact):
        assert relative_error(a, b) < 1e-10
    assert queue.grad is None


def test_module_keeps_a_queue():
    torch.manual_seed(0)
    unit = torch.nn.functional.normalize
    criterion = SwAVLoss(8, 5, queue_length=10)
    batches = [torch.randn(2, 4, 8) for _ in range(5)]
    losses = [criterion(*batch) for batch in batches]
    newest = torch.cat([unit(batch, dim=2) for batch in reversed(batches)], dim=1)
    assert torch.equal(criterion.queue, newest[:, :10])
    sum(losses).backward()  # earlier queues are still those of their calls
    prototypes = unit(criterion.prototypes)
    given = [
        fastdc.swapped_prediction_loss(*unit(batches[i], dim=2), prototypes, queue=q)
        for i, q in ((2, None), (3, newest[:, 8:18]), (4, newest[:, 4:14]))
    ]
    assert [loss.item() for loss in losses[2:]] == pytest.approx([loss.item() for loss in given], rel=1e-5)
    again = SwAVLoss(8, 5, queue_length=10)
    again.load_state_dict(criterion.state_dict())
    assert torch.equal(again(*batches[0]), criterion(*batches[0]))
    before = criterion.queue.clone()
    criterion.eval()(*batches[1])
    assert torch.equal(criterion.queue, before)
    with pytest.raises(ValueError, match="queue_length must be 0 or above, got -1"):
        SwAVLoss(8, 5, queue_length=-1)


@pytest.mark.parametrize(
    ("queue", "error", "message"),
    [
        ([1.0], TypeError, "queue must be a torch.Tensor, got list; stack both views' with torch.stack"),
        (torch.zeros(5, 2), ValueError, r"queue must have shape \(2, n_queued, 2\), .* got \(5, 2\)"),
        (torch.zeros(2, 5, 3), ValueError, r"queue must have shape \(2, n_queued, 2\), .* got \(2, 5, 3\)"),
    ],
)
def test_bad_queues(queue, error, message):
    with pytest.raises(error, match=message):
        swapped_prediction_loss(torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(4, 2), queue=queue)


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, torch.zeros(3), r"z1 must be 2-D, of shape \(n_samples, n_features\)"),
        (1, torch.zeros(4, 2), "z1 has 3 rows but z2 has 4; they are two views of the same samples"),
        (1, torch.zeros(3, 5), "z2 has 5 features but z1 has 2"),
        (2, torch.zeros(4, 3), "prototypes has 3 features but z1 has 2"),
    ],
)
def test_bad_input(position, value, message):
    tensors = [torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(4, 2)]
    tensors[position] = value
    with pytest.raises(ValueError, match=message):
        swapped_prediction_loss(*tensors)
    with pytest.raises(ValueError, match="temperature must be a finite number above 0"):
        swapped_prediction_loss(torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(4, 2), temperature=0.0)


@pytest.mark.slow
def test_many_prototypes_in_little_memory(run_python):
    """Scores of both views would be 8 GB; the inputs, the gradients and 256 MB are allowed."""
    code = """
import resource, torch
from fastdc import swapped_prediction_loss
torch.set_num_threads(2)
unit = torch.nn.functional.normalize
def run(n, k):
    tensors = [unit(torch.randn(m, 128)).requires_grad_() for m in (n, n, k)]
    loss = swapped_prediction_loss(*tensors)
    loss.backward()
    assert loss.isfinite() and all(t.grad.isfinite().all() for t in tensors)
run(100, 300)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(16384, 65536)
extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
print(extra - 2 * 4 * 128 * (2 * 16384 + 65536))
"""
    assert int(run_python(code)) < 256 << 20
