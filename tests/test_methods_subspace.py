"""DSC-Net: a small network and few steps."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.utils.estimator_checks import parametrize_with_checks

import fastdc
from fastdc.methods import DSCNet
from fastdc.methods.subspace import largest_share, subspace_affinity
from fastdc.networks import MLPAutoencoder, SelfExpression
from fastdc.terms import ExpressedReconstruction, SelfExpressive
from fastdc.training import Batch
from tests.method_cases import check_conventions, check_resume, check_saving, digits

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {
    "n_latent": 5,
    "hidden": (32,),
    "pretrain_epochs": 5,
    "epochs": 8,
    "batch_size": 64,
    "subspace_dim": 3,
    "n_init": 3,
    "random_state": 0,
}
TINY = {"n_latent": 2, "hidden": (16,), "batch_size": 32, "n_init": 2}


@parametrize_with_checks(
    [
        DSCNet(3, pretrain_epochs=3, epochs=4, **TINY),
    ]
)
def test_scikit_learn_conventions(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def X():
    return digits(200)[0]


@pytest.fixture(scope="module")
def dsc(X):
    return check_conventions(DSCNet(10, **SMALL), X)


def test_it_is_saved_and_resumed(dsc, X, tmp_path, monkeypatch):
    check_saving(dsc, X, tmp_path / "dsc")
    loaded = DSCNet.load(tmp_path / "dsc")
    assert torch.equal(loaded.head_.coefficients, dsc.head_.coefficients)
    check_resume(DSCNet(10, **SMALL), X, tmp_path, monkeypatch, dsc, (3, 7, 12))
    again = DSCNet(10, **SMALL).fit(X, checkpoint=tmp_path / "12", resume=True)  # from the end
    assert_array_equal(again.labels_, dsc.labels_)


def test_it_takes_all_rows_at_each_step_and_has_no_predict(dsc, X):
    epochs = [record for record in dsc.history_ if "loss" in record]
    assert [record["stage"] for record in epochs] == ["pretrain"] * 5 + ["express"] * 8
    assert epochs[-1]["loss"] < epochs[5]["loss"]
    assert not hasattr(dsc, "predict")
    assert dsc.head_.coefficients.shape == (200, 200)
    assert (dsc.head_.coefficients.diagonal() == 0).all()


@pytest.mark.parametrize("norm", ["fro", "l1"])
def test_the_objective_is_the_papers(X, norm):
    torch.manual_seed(0)
    x = torch.from_numpy(X[:20]).double()
    network = MLPAutoencoder(64, 4, (8,), torch.Generator().manual_seed(0)).double()
    head = SelfExpression().double()
    head.start(20, 1.0)
    head.coefficients.data.normal_().fill_diagonal_(0.0)
    batch = Batch(network, x, torch.arange(20))
    loss = ExpressedReconstruction(head)(batch) + SelfExpressive(head, 0.3, 7.0, norm)(batch)
    loss.backward()
    gradient = head.coefficients.grad.clone()

    c = head.coefficients.detach().requires_grad_()
    z = network.encode(x)
    size = c.square().sum() if norm == "fro" else c.abs().sum()
    expected = 0.5 * (x - network.decode(c @ z)).square().sum() + 0.3 * size + 3.5 * (z - c @ z).square().sum()
    (expected / 20).backward()
    torch.testing.assert_close(loss, expected / 20)
    off = ~torch.eye(20, dtype=torch.bool)
    torch.testing.assert_close(gradient[off], c.grad[off])


def test_largest_shares_by_hand():
    codes = np.array([[0.0, -5.0, 3.0, 2.0], [1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    kept = largest_share(codes, 0.6)
    assert_allclose(kept, [[0, -5, 3, 0], [1, 0, 1, 0], [0, 0, 0, 0]])
    assert_allclose(largest_share(codes, 1.0), codes)


def test_the_affinity_is_that_of_a_full_decomposition():
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(60, 60))
    u, s, _ = np.linalg.svd((codes + codes.T) / 2)
    rows = u[:, :7] * np.sqrt(s[:7])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    expected = np.clip(rows @ rows.T, 0, None) ** 4.0
    np.fill_diagonal(expected, 0)
    assert_allclose(subspace_affinity(codes, 7, 4.0, 0), expected, atol=1e-8)
    full = subspace_affinity(codes, 60, 1.0, 0)
    assert_allclose(full, full.T)
    assert full.max() <= 1


def test_it_finds_subspaces():
    """Three planes through the origin in ten dimensions: k-means cannot tell them apart."""
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1, 2], 50)
    X = np.concatenate([rng.normal(size=(50, 2)) @ rng.normal(size=(2, 10)) for _ in range(3)]).astype(np.float32)
    encoder, decoder = torch.nn.Linear(10, 8), torch.nn.Linear(8, 10)
    with torch.no_grad():  # a linear pair that keeps subspaces
        encoder.weight.copy_(torch.eye(8, 10))
        decoder.weight.copy_(torch.eye(10, 8))
        encoder.bias.zero_()
        decoder.bias.zero_()
    options = {"encoder": encoder, "decoder": decoder, "pretrain_epochs": 0, "epochs": 200, "subspace_dim": 2}
    labels = DSCNet(3, penalty=0.1, learning_rate=1e-2, **options, random_state=0).fit(X).labels_
    assert fastdc.adjusted_rand_index(y, labels) > 0.9
    assert fastdc.adjusted_rand_index(y, fastdc.KMeans(3, n_init=10, random_state=0).fit(X).labels_) < 0.4


@pytest.mark.slow
def test_it_beats_kmeans():
    X, y = digits(1797)
    labels = DSCNet(10, hidden=(256, 256), pretrain_epochs=60, random_state=0).fit(X).labels_
    assert fastdc.normalized_mutual_info(y, labels) > 0.75  # k-means: 0.74


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"penalty": -1.0}, ValueError, "penalty must be"),
        ({"expression_weight": 0.0}, ValueError, "weight must be a finite number above 0"),
        ({"norm": "l0"}, ValueError, r"norm must be one of \('fro', 'l1'\), got 'l0'"),
        ({"keep": 0.0}, ValueError, "keep must be a share above 0 and at most 1, got 0.0"),
        ({"subspace_dim": 0}, ValueError, "subspace_dim must be at least 1, got 0"),
        ({"power": 0.0}, ValueError, "power must be a finite number above 0"),
    ],
    ids=lambda v: str(v) if isinstance(v, dict) else "",
)
def test_bad_parameters_raise_before_training(X, monkeypatch, parameters, error, message):
    monkeypatch.setattr("fastdc.training.Train.run", lambda *_: pytest.fail("training has begun"))
    with pytest.raises(error, match=message):
        DSCNet(10, **(SMALL | parameters)).fit(X)


def test_the_library_exports_it():
    assert fastdc.DSCNet is DSCNet
