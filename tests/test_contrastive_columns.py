"""Columns against columns (cluster_contrast, feature_decorrelation) and rows against shared keys (prototypes, IDFD)."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from fastdc.kernels._accuracy import assert_not_worse_than_torch, relative_error
from fastdc.kernels.contrastive import (
    cluster_contrast,
    feature_decorrelation,
    instance_discrimination,
    prototype_concentration,
    prototype_contrast,
)
from fastdc.losses import ClusterContrastLoss, IDFDLoss, PrototypeContrastLoss
from tests.contrastive_cases import DTYPES, loss_and_gradients, make_views


def plain_clusters(p1, p2, temperature=1.0, balance=1.0):
    k = p1.shape[1]
    y = normalize(torch.cat([p1, p2], dim=1), dim=0)
    scores = (y.T @ y / temperature).masked_fill(torch.eye(2 * k, dtype=torch.bool), -torch.inf)
    loss = cross_entropy(scores, torch.arange(2 * k).roll(k))
    for p in (p1, p2):
        share = p.sum(0) / p.sum()
        loss = loss + balance * (math.log(k) + torch.special.xlogy(share, share).sum())
    return loss


def plain_features(z, temperature=2.0):
    f = normalize(normalize(z, dim=1), dim=0)
    return cross_entropy(f.T @ f / temperature, torch.arange(z.shape[1]))


def plain_places(z, keys, places, temperature=0.1):
    return cross_entropy(normalize(z, dim=1) @ normalize(keys, dim=1).T / temperature, places)


def cluster_inputs(n, k, dtype=torch.float32, seed=0):
    return [(view.softmax(1) * 0.999 + 0.001 / k).to(dtype) for view in make_views(n, k, seed=seed)], []


def feature_inputs(n, d, dtype=torch.float32, seed=0):
    return [make_views(n, d, dtype, seed)[0] + 0.5], []


def place_inputs(n, d, dtype=torch.float32, seed=0):
    z, keys = make_views(n, d, dtype, seed)
    keys = keys[: max(1, n // 3)]
    return [z, keys], [torch.arange(n) * 7 % len(keys)]


LOSSES = {
    "clusters": (cluster_contrast, plain_clusters, cluster_inputs),
    "features": (feature_decorrelation, plain_features, feature_inputs),
    "prototypes": (prototype_contrast, plain_places, place_inputs),
    "instances": (
        lambda *inputs, temperature=0.1, **options: instance_discrimination(*inputs, temperature, **options),
        plain_places,
        place_inputs,
    ),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", [(9, 2), (60, 7), (700, 40)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches(name, shape, dtype):
    fused, plain, make = LOSSES[name]
    working = torch.float64 if dtype == torch.float64 else torch.float32
    results = []
    for seed in range(3):
        tensors, constants = make(*shape, dtype, seed)
        truth = loss_and_gradients(plain, [t.double() for t in tensors], constants)
        same = loss_and_gradients(plain, [t.to(working) for t in tensors], constants)
        results.append(list(zip(loss_and_gradients(fused, tensors, constants), same, truth)))
    for place, cases in enumerate(zip(*results)):
        assert all(got.dtype == (dtype if place else working) for got, *_ in cases)
        if dtype == torch.float64:
            assert max(relative_error(got, truth) for got, _, truth in cases) < 1e-12
        else:
            assert_not_worse_than_torch(cases, factor=3 if place else 2, dtype=dtype, name=f"{name}, result {place}")


@pytest.mark.parametrize("name", LOSSES)
def test_T39_gradcheck_and_options(name):
    fused, plain, make = LOSSES[name]
    tensors, constants = make(8, 3, torch.float64)
    leaves = [t.requires_grad_() for t in tensors]
    assert torch.autograd.gradcheck(lambda *t: fused(*t, *constants), leaves)
    for options in ({"temperature": 0.3}, {"balance": 0.25} if name == "clusters" else {"temperature": 3.0}):
        assert fused(*leaves, *constants, **options).item() == pytest.approx(
            plain(*leaves, *constants, **options).item(), rel=1e-12
        )


def test_by_hand():
    p = torch.eye(3).repeat(4, 1)  # equal columns have cosine 1, the four others 0, and all clusters are of one size
    assert cluster_contrast(p, p, 0.5).item() == pytest.approx(math.log(math.exp(2) + 4) - 2, rel=1e-6)
    lonely = torch.tensor([[1.0, 0.0]] * 5)  # an entropy of zero in both views
    imbalance = cluster_contrast(lonely, lonely).item() - cluster_contrast(lonely, lonely, balance=0.0).item()
    assert imbalance == pytest.approx(2 * math.log(2), rel=1e-6)
    assert feature_decorrelation(torch.eye(4), 0.5).item() == pytest.approx(math.log(math.exp(2) + 3) - 2, rel=1e-6)
    z, labels = torch.eye(2), torch.tensor([0, 1])
    loss = prototype_contrast(z, z, labels, torch.tensor([0.5, 0.25]))
    expected = (math.log(math.exp(2) + 1) - 2 + math.log(math.exp(4) + 1) - 4) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_clusters_without_rows(dtype):
    """An empty cluster is defined, where p log p is not."""
    (p1, p2), _ = cluster_inputs(30, 5)
    p1[:, 2] = 0.0
    p1, p2 = p1.to(dtype), p2.to(dtype)
    loss, *gradients = loss_and_gradients(lambda a, b: cluster_contrast(a, b, balance=0.0), [p1, p2])
    assert loss.item() == pytest.approx(plain_clusters(p1.double(), p2.double(), balance=0.0).item(), rel=1e-4)
    assert all(bool(torch.isfinite(g).all()) for g in gradients)
    assert (gradients[0][:, 2] == 0).all()
    assert math.isfinite(cluster_contrast(p1, p2).item())
    p2[4, 1] = math.nan
    assert cluster_contrast(p1, p2).isnan()


def test_temperatures_of_prototypes():
    tensors, constants = place_inputs(60, 5, torch.float64)
    temperatures = torch.rand(20, dtype=torch.float64) + 0.05
    keys = lambda z, c, t, y: prototype_contrast(z, c, y, t)  # noqa: E731
    plain = lambda z, c, t, y: cross_entropy(normalize(z, dim=1) @ normalize(c, dim=1).T / t, y)  # noqa: E731
    got = loss_and_gradients(keys, [*tensors, temperatures], constants)
    for a, b in zip(got, loss_and_gradients(plain, [*tensors, temperatures], constants)):
        assert relative_error(a, b) < 1e-12


def test_concentration():
    z, c = (t.double() for t in make_views(50, 4))
    labels, prototypes = torch.arange(50) % 6, c[:8]
    labels[0] = 6  # one row alone, and the eighth prototype has none
    expected = []
    for place in range(6):
        distances = np.linalg.norm(z[labels == place] - prototypes[place], axis=1)
        expected.append(distances.mean() / np.log(len(distances) + 10))
    expected += [max(expected)] * 2
    np.testing.assert_allclose(prototype_concentration(z, prototypes, labels), expected, rtol=1e-12)
    assert prototype_concentration(c[:2], c[:2], torch.arange(2)).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("name", LOSSES)
def test_torch(name):
    """One graph, more backward passes, no silent second derivative."""
    fused, _, make = LOSSES[name]
    compiled = torch.compile(
        lambda *t: fused(*(x * 1.0 if x.is_floating_point() else x for x in t)),
        fullgraph=True,
        backend="aot_eager",
        dynamic=True,
    )
    for n in (40, 61):
        tensors, constants = make(n, 5)
        expected = loss_and_gradients(fused, tensors, constants)
        for a, b in zip(loss_and_gradients(compiled, tensors, constants), expected):
            assert torch.allclose(a, b, rtol=1e-5, atol=1e-8)
    x, *others = tensors
    x.requires_grad_()
    loss = fused(x, *others, *constants)
    first = torch.autograd.grad(loss, x, retain_graph=True)[0].clone()
    assert torch.equal(torch.autograd.grad(4 * loss, x)[0], 4 * first)
    (gradient,) = torch.autograd.grad(fused(x, *others, *constants), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        gradient.square().sum().backward()


def test_modules():
    (p1, p2), _ = cluster_inputs(30, 5)
    assert torch.equal(ClusterContrastLoss(0.5, 0.1)(p1, p2), cluster_contrast(p1, p2, 0.5, 0.1))
    (z, prototypes), (labels,) = place_inputs(30, 5)
    temperatures = torch.rand(10) + 0.1
    criterion = PrototypeContrastLoss()
    assert torch.equal(
        criterion(z, [prototypes], [labels], [temperatures]), prototype_contrast(z, prototypes, labels, temperatures)
    )


def test_idfd_remembers():
    criterion = IDFDLoss(20, 5, momentum=0.25)
    before = criterion.memory_bank.clone()
    indices = torch.tensor([3, 17, 4])
    z = make_views(3, 5)[0].requires_grad_()
    expected = instance_discrimination(z, before, indices, 1.0) + feature_decorrelation(z, 2.0)
    loss = criterion(z, indices)
    assert torch.equal(loss, expected)
    loss.backward()  # what the loss has kept is not what the update has changed
    assert torch.equal(z.grad, torch.autograd.grad(expected, z)[0])
    mixed = normalize(0.25 * before[indices] + 0.75 * normalize(z.detach(), dim=1), dim=1)
    assert torch.allclose(criterion.memory_bank[indices], mixed)
    others = [i for i in range(20) if i not in indices]
    assert torch.equal(criterion.memory_bank[others], before[others])
    after = criterion.memory_bank.clone()
    criterion.eval()(z, indices)
    assert torch.equal(criterion.memory_bank, after)


ONES = torch.ones(3, 2)
BAD = [
    (cluster_contrast, (ONES, torch.ones(4, 2)), {}, ValueError, "p1 has 3 rows but p2 has 4; they are two views"),
    (cluster_contrast, (ONES, torch.ones(3, 4)), {}, ValueError, "p2 has 4 features but p1 has 2"),
    (cluster_contrast, (ONES, ONES), {"balance": -1.0}, ValueError, "balance must be a finite number, 0 or above"),
    (cluster_contrast, (ONES, ONES), {"group": 1}, RuntimeError, "group needs torch.distributed"),
    (feature_decorrelation, (ONES,), {"temperature": 0}, ValueError, "temperature must be a finite number above 0"),
    (prototype_contrast, (ONES, torch.ones(2, 5), torch.zeros(3).long()), {}, ValueError, "prototypes has 5 features"),
    (prototype_contrast, (ONES, ONES, torch.tensor([0, 3, 1])), {}, ValueError, "labels must be from 0 to 2, rows of"),
    (prototype_contrast, (ONES, ONES, torch.zeros(3)), {}, TypeError, "labels must be int64"),
    (
        prototype_contrast,
        (ONES, ONES, torch.zeros(3).long(), torch.ones(2)),
        {},
        ValueError,
        r"temperature must have shape \(3,\), one entry for each of the prototypes",
    ),
    (instance_discrimination, (ONES, ONES, torch.tensor([0, -1, 1])), {}, ValueError, "indices must be from 0 to 2"),
    (instance_discrimination, (ONES, torch.ones(3, 1), torch.arange(3)), {}, ValueError, "memory_bank has 1 features"),
    (IDFDLoss, (4, 2), {"momentum": 1.0}, ValueError, "momentum must be from 0 to below 1, got 1.0"),
]


@pytest.mark.parametrize(("function", "given", "options", "error", "message"), BAD)
def test_bad_input(function, given, options, error, message):
    with pytest.raises(error, match=message):
        function(*given, **options)
