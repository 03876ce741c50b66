"""The contrastive losses on CPUs: values, gradients, invariances."""

import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from fastdc.kernels._accuracy import assert_not_worse_than_torch, relative_error
from fastdc.kernels.contrastive import info_nce, nt_xent, numba_bank, numba_kernel, sup_con
from fastdc.kernels.contrastive.numba_bank import Bank
from tests.contrastive_cases import DTYPES, LOSSES, loss_and_gradients, make_inputs, make_views

BACKENDS = ["reference", "numba"]
SHAPES = [(2, 3), (33, 16), (70, 40), (560, 17)]  # samples, features: within one tile, some, and large tiles


def name_shape(shape):
    return "N{}-D{}".format(*shape)


def check(name, make_case, dtype=torch.float32, seeds=3, **options):
    """Loss and all gradients against those of torch in the same dtype and in float64, over several draws."""
    fused, plain = LOSSES[name]
    working = torch.float64 if dtype == torch.float64 else torch.float32
    results = []
    for seed in range(seeds):
        tensors, constants = make_case(seed)
        truth = loss_and_gradients(plain, [t.double() for t in tensors], constants, **options)
        same = loss_and_gradients(plain, [t.to(working) for t in tensors], constants, **options)
        got = loss_and_gradients(fused, tensors, constants, backend="numba", **options)
        results.append([(g, p.to(g.dtype), t) for g, p, t in zip(got, same, truth)])
    assert got[0].dtype == working
    assert all(g.dtype == dtype for g in got[1:])
    for place, cases in enumerate(zip(*results)):
        label = f"{name}, result {place}"
        if dtype == torch.float64:  # the truth has no more digits than what is tested
            assert max(relative_error(got, truth) for got, _, truth in cases) < 1e-13, label
        else:
            assert_not_worse_than_torch(cases, factor=3 if place else 2, dtype=dtype, name=label)


# --- cases by hand and by independent formulas


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend):
    z = torch.eye(3) * 7  # similarity 1 to the other view, 0 to four rows
    loss = nt_xent(z, z, temperature=0.5, backend=backend)
    assert loss.item() == pytest.approx(math.log(math.exp(2) + 4) - 2, rel=1e-6)
    loss = info_nce(z, z, temperature=0.5, extra_keys=-z[:1], symmetric=False, backend=backend)
    expected = (2 * math.log(math.exp(2) + 3) + math.log(math.exp(2) + 2 + math.exp(-2))) / 3 - 2
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    # of the labels 4, 4, 9: two rows have one positive each, of similarity 0, and the third has none
    loss = sup_con(torch.eye(3), torch.tensor([4, 4, 9]), temperature=0.5, backend=backend)
    assert loss.item() == pytest.approx(2 / 3 * math.log(2), rel=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_independent_formula(backend):
    z1, z2 = make_views(40, 7, torch.float64)
    z = np.concatenate([z1, z2])
    z /= np.sqrt((z * z).sum(1, keepdims=True))
    losses = []
    for i in range(80):
        others = np.delete(z @ z[i] / 0.2, i)
        losses.append(logsumexp(others) - z[(i + 40) % 80] @ z[i] / 0.2)
    assert nt_xent(z1, z2, 0.2, backend=backend).item() == pytest.approx(np.mean(losses), rel=1e-12)
    labels = torch.arange(80) % 40
    assert sup_con(torch.cat([z1, z2]), labels, 0.2, backend=backend).item() == pytest.approx(
        np.mean(losses), rel=1e-12
    )


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_T39_gradcheck(name, backend):
    tensors, constants = make_inputs(name, 5, 3, torch.float64)
    leaves = [t.requires_grad_() for t in tensors]
    fused = LOSSES[name][0]
    assert torch.autograd.gradcheck(lambda *t: fused(*t, *constants, backend=backend), leaves)


# --- no worse than torch


@pytest.mark.parametrize("shape", SHAPES, ids=name_shape)
@pytest.mark.parametrize("name", LOSSES)
def test_matches(name, shape):
    check(name, lambda seed: make_inputs(name, *shape, seed=seed))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(1, 3), (1, 1), (2, 1)], ids=name_shape)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_where_the_truth_may_be_zero(name, backend, shape, dtype):
    """One sample's loss, and the gradients of rows of one feature, are differences of equal numbers.

    So their errors are held against what cancels: similarities of 1 / temperature, and their gradients.
    """
    tensors, constants = make_inputs(name, *shape, dtype)
    truth = loss_and_gradients(LOSSES[name][1], [t.double() for t in tensors], constants, temperature=0.1)
    got = loss_and_gradients(LOSSES[name][0], tensors, constants, temperature=0.1, backend=backend)
    ulps = 4 * torch.finfo(dtype).eps / 0.1
    assert abs(got[0].item() - truth[0].item()) <= ulps
    for x, gradient, exact in zip(tensors, got[1:], truth[1:]):
        assert ((gradient.double() - exact).abs() * x.norm(dim=1, keepdim=True) <= ulps).all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    "options", [{"temperature": 0.07}, {"temperature": 0.01}, {"temperature": 0.001}, {"normalize": False}], ids=str
)
def test_matches_with_every_option(name, options):
    check(name, lambda seed: make_inputs(name, 90, 24, seed=seed), **options)


@pytest.mark.parametrize("symmetric", [True, False])
def test_info_nce_with_and_without_a_bank(symmetric):
    def make(seed):
        views = make_views(300, 20, seed=seed, n_views=5)
        bank = torch.cat(views[2:])
        return [*views[:2], bank], []

    check("info_nce", make, symmetric=symmetric)
    check("info_nce", lambda seed: (make(seed)[0][:2], []), symmetric=symmetric)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_in_every_dtype(name, dtype):
    check(name, lambda seed: make_inputs(name, 130, 20, dtype, seed), dtype)


@pytest.mark.parametrize("name", ["nt_xent", "info_nce"])
def test_views_that_have_met(name):
    """Losses near zero: what is left of log-sum-exp less the positive keeps its digits."""
    check(name, lambda seed: make_inputs(name, 100, 64, seed=seed, spread=0.05), temperature=0.05)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_T16_rows_whose_squares_leave_half_precision(name, dtype):
    tensors, constants = make_inputs(name, 40, 12, dtype)
    large = [t * 2.0**10 for t in tensors]
    fused = LOSSES[name][0]
    assert torch.equal(fused(*large, *constants), fused(*tensors, *constants))
    raw = [t * 8 for t in tensors]  # exponents of thousands
    for result in loss_and_gradients(fused, raw, constants, normalize=False, temperature=0.02):
        assert bool(torch.isfinite(result).all())


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_T18_rows_of_zeros(name, backend, dtype):
    tensors, constants = make_inputs(name, 30, 8, dtype)
    for t in tensors:
        t[3] = 0.0
    fused, plain = LOSSES[name]
    loss, *gradients = loss_and_gradients(fused, tensors, constants, backend=backend)
    assert loss.item() == pytest.approx(plain(*(t.double() for t in tensors), *constants).item(), rel=1e-5)
    for gradient in gradients:
        assert bool(torch.isfinite(gradient).all())
        assert (gradient[3] == 0).all()
        assert (gradient[4] != 0).any()


def test_equal_rows():
    for temperature in (0.5, 0.001):
        for result in loss_and_gradients(nt_xent, [torch.ones(300, 4)] * 2, temperature=temperature)[1:]:
            assert result.abs().max() < 1e-6
        assert nt_xent(torch.ones(300, 4), torch.ones(300, 4), temperature).item() == pytest.approx(math.log(599))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("temperature", [0.5, 0.001])
def test_T01_nan_is_not_hidden(name, temperature):
    for bad in (math.nan, math.inf):
        tensors, constants = make_inputs(name, 80, 6)
        tensors[0][70, 2] = bad
        loss = LOSSES[name][0](*tensors, *constants, temperature=temperature)
        assert loss.isnan()


def test_labels_without_positives():
    z = torch.cat(make_views(20, 6))
    loss, gradient = loss_and_gradients(sup_con, [z], [torch.arange(40)])
    assert loss == 0
    assert (gradient == 0).all()
    labels = torch.arange(40) * 2**40 - 2**45  # any numbers
    labels[7] = labels[30]
    expected = loss_and_gradients(sup_con, [z.double()], [labels], backend="reference")
    for got, exact in zip(loss_and_gradients(sup_con, [z.double()], [labels]), expected):
        assert relative_error(got, exact) < 1e-12


# --- invariances


@pytest.mark.parametrize("temperature", [0.5, 0.001])
@pytest.mark.parametrize("name", LOSSES)
def test_T44_threads_do_not_change_a_bit(name, temperature, set_threads):
    tensors, constants = make_inputs(name, 800, 20)
    results = []
    for threads in (1, 2, 3):
        set_threads(threads)
        results.append(loss_and_gradients(LOSSES[name][0], tensors, constants, temperature=temperature))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0]))


@pytest.mark.parametrize("name", LOSSES)
def test_T20_strides(name):
    tensors, constants = make_inputs(name, 90, 12)
    expected = loss_and_gradients(LOSSES[name][0], tensors, constants, normalize=False)
    wide = torch.zeros(2 * len(tensors[0]), 24)
    wide[::2, ::2] = tensors[0]
    strided = [wide[::2, ::2], *(t.t().contiguous().t() for t in tensors[1:])]
    assert not strided[0].is_contiguous()
    leaves = [t.detach().requires_grad_() for t in strided]
    loss = LOSSES[name][0](*leaves, *constants, normalize=False)
    assert torch.equal(loss.detach(), expected[0])
    for gradient, exact in zip(torch.autograd.grad(loss, leaves), expected[1:]):
        assert torch.equal(gradient, exact)


@pytest.mark.parametrize("name", LOSSES)
def test_row_order(name):
    tensors, constants = make_inputs(name, 150, 12, torch.float64)
    order = torch.randperm(len(tensors[0]))
    expected = loss_and_gradients(LOSSES[name][0], tensors, constants)
    permuted = loss_and_gradients(LOSSES[name][0], [t[order] for t in tensors], [c[order] for c in constants])
    assert relative_error(permuted[0], expected[0]) < 1e-12
    for got, exact in zip(permuted[1:], expected[1:]):
        assert relative_error(got, exact[order]) < 1e-12


@pytest.mark.parametrize("name", LOSSES)
def test_tiles_and_blocks_do_not_matter(name, monkeypatch):
    tensors, constants = make_inputs(name, 300, 12, torch.float64)
    expected = loss_and_gradients(LOSSES[name][0], tensors, constants)
    for small, largest in ((1, 8), (1024, 1), (1, 1)):
        monkeypatch.setattr(numba_kernel, "SMALL", small)
        monkeypatch.setattr(numba_kernel, "LARGEST_BLOCK", largest)
        for got, exact in zip(loss_and_gradients(LOSSES[name][0], tensors, constants), expected):
            assert relative_error(got, exact) < 1e-12


@pytest.mark.parametrize("symmetric", [True, False])
def test_what_is_held_does_not_matter(symmetric, monkeypatch):
    """Exponentials held for the gradients or made anew; a bank beside the keys or among them, in few blocks or many."""
    queries, keys, bank, *_ = make_views(150, 12, n_views=4)
    given = {"nt_xent": [queries, keys], "info_nce": [queries, keys, torch.cat([bank, bank.flip(0)])[:290]]}
    for name, tensors in given.items():
        options = {"symmetric": symmetric} if name == "info_nce" else {}
        expected = loss_and_gradients(LOSSES[name][0], tensors, **options)
        patches = (numba_kernel, "HELD_BYTES", 0), (numba_bank, "LARGEST_BLOCK", 64), (Bank, "is_safe", lambda _: False)
        for target, attribute, value in patches:
            with monkeypatch.context() as patch:
                patch.setattr(target, attribute, value)
                for got, exact in zip(loss_and_gradients(LOSSES[name][0], tensors, **options), expected):
                    assert relative_error(got, exact) < 2e-6


def test_long_keys_in_a_bank():
    """Without a division by lengths the bank's decide whether exponents need shifts."""
    queries, keys, bank = (torch.nn.functional.normalize(t) for t in make_views(40, 12, n_views=3))
    for length in (1.0, 300.0):
        check("info_nce", lambda seed, length=length: ([queries, keys, length * bank], []), seeds=1, normalize=False)
    bank[7, 3] = math.nan
    assert info_nce(queries, keys, extra_keys=bank, normalize=False).isnan()


def test_safe_exponents_do_not_matter(monkeypatch):
    """With shifts and without them."""
    tensors, _ = make_inputs("info_nce", 300, 12)
    for name, given in (("nt_xent", tensors[:2]), ("info_nce", tensors)):
        expected = loss_and_gradients(LOSSES[name][0], given)
        with monkeypatch.context() as patch:
            patch.setattr(numba_kernel, "SAFE_EXPONENT", {4: 0.0, 8: 0.0})
            for got, exact in zip(loss_and_gradients(LOSSES[name][0], given), expected):
                assert relative_error(got, exact) < 1e-6


@pytest.mark.parametrize("temperature", [0.5, 0.001])
def test_input_stays_and_results_are_written_whole(temperature, monkeypatch):
    original = np.empty

    def poisoned(shape, dtype=float, **options):
        array = original(shape, dtype, **options)
        array.fill(np.nan if np.issubdtype(array.dtype, np.floating) else 1)
        return array

    cases = {name: make_inputs(name, 131, 7) for name in LOSSES}
    before = {name: [t.clone() for t in tensors] for name, (tensors, _) in cases.items()}
    monkeypatch.setattr(np, "empty", poisoned)
    for name, (tensors, constants) in cases.items():
        results = loss_and_gradients(LOSSES[name][0], tensors, constants, temperature=temperature)
        assert all(bool(torch.isfinite(t).all()) for t in results)
        assert all(torch.equal(a, b) for a, b in zip(tensors, before[name]))


@pytest.mark.slow
def test_T29_more_pairs_than_int32_counts():
    n = 23_500
    z1, z2 = (torch.nn.functional.normalize(z).double() for z in make_views(n, 3))
    leaves = [z.float().requires_grad_() for z in (z1, z2)]
    loss = nt_xent(*leaves, normalize=False)
    loss.backward()
    z, total = torch.cat([z1, z2]), 0.0
    for part in torch.arange(2 * n).split(1000):
        scores = z[part] @ z.T / 0.5
        scores[torch.arange(len(part)), part] = -torch.inf
        total += (scores.logsumexp(1) - (z[part] * z[(part + n) % (2 * n)]).sum(1) / 0.5).sum().item()
    assert loss.item() == pytest.approx(total / (2 * n), rel=1e-6)
    assert leaves[1].grad.isfinite().all()


@pytest.mark.slow
def test_little_memory(run_python):
    """The products alone would be 1 GB; 64 MB beside inputs and gradients are allowed."""
    code = """
import resource, torch
from fastdc import nt_xent
torch.set_num_threads(2)
def run(b):
    views = [torch.randn(b, 128).requires_grad_() for _ in range(2)]
    nt_xent(*views).backward()
    return sum(v.grad.abs().sum().item() for v in views)
run(100)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(8192)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 - 4 * 4 * 8192 * 128)
"""
    assert int(run_python(code)) < 64 << 20
