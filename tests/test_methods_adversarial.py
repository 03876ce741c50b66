"""ClusterGAN as an estimator: conventions, objectives, results. Small networks and few epochs."""

import pytest
import torch
from numpy.testing import assert_array_equal
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn
from torch.nn.functional import cross_entropy

import fastdc
from fastdc.methods import ClusterGAN
from fastdc.networks import GeneratorTriple, LastColumns
from fastdc.terms import Criticism, Deception
from fastdc.training import Batch
from tests.method_cases import check_conventions, check_resume, check_saving, digits

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"hidden": (32,), "n_normal": 4, "epochs": 4, "batch_size": 50, "random_state": 0}


@parametrize_with_checks(
    [ClusterGAN(3, hidden=(32,), n_normal=2, epochs=60, batch_size=16, learning_rate=2e-3, n_critic=2)]
)
def test_scikit_learn_conventions(estimator, check):
    check(estimator)


def test_conventions_saving_and_resuming(tmp_path, monkeypatch):
    X, _ = digits(250)
    estimator = ClusterGAN(10, **SMALL)
    fitted = check_conventions(estimator, X)
    assert fitted.transform(X).shape == (250, 14)
    assert_array_equal(fitted.labels_, fitted.transform(X)[:, 4:].argmax(1))
    assert {"critic", "generator", "loss"} < set(fitted.history_[-1])
    check_saving(fitted, X, tmp_path / "m.fastdc")
    check_resume(estimator, X, tmp_path, monkeypatch, fitted, (1, 3))


def test_the_critic_minimises_the_wasserstein_loss_with_its_gradient_penalty(monkeypatch):
    torch.manual_seed(0)
    x, network = torch.randn(20, 6), GeneratorTriple(6, 2, 3, (8,))
    term = Criticism(2, 3, penalty=7.0)
    z = term.draw(x)[0]
    share = torch.rand(20, 1)
    monkeypatch.setattr(term, "draw", lambda like: (z, None))
    monkeypatch.setattr(torch, "rand", lambda *_, **__: share)
    made = network.decode(z).detach()
    between = (made + share * (x - made)).requires_grad_()
    slopes = torch.stack([torch.autograd.grad(network.critic(between)[i, 0], between)[0][i] for i in range(20)])
    expected = network.critic(made).mean() - network.critic(x).mean() + 7 * (slopes.norm(dim=1) - 1).square().mean()
    loss = term(Batch(network, x, torch.arange(20)))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward(inputs=list(network.critic.parameters()))
    assert all(p.grad is None for p in network.generator.parameters())


def test_the_generator_deceives_and_the_encoder_inverts(monkeypatch):
    torch.manual_seed(0)
    x, network = torch.randn(20, 6), GeneratorTriple(6, 2, 3, (8,))
    term = Deception(2, 3, beta_normal=5.0, beta_cluster=3.0)
    z, clusters = term.draw(x)
    monkeypatch.setattr(term, "draw", lambda like: (z, clusters))
    made = network.decode(z)
    found = network.encode(made)
    expected = (
        -network.critic(made).mean()
        + 5 * (found[:, :2] - z[:, :2]).square().mean()
        + 3 * cross_entropy(found[:, 2:], clusters)
    )
    assert term(Batch(network, x, torch.arange(20))).item() == pytest.approx(expected.item(), rel=1e-5)


def test_latent_rows_are_a_small_normal_part_and_one_of_the_clusters():
    torch.manual_seed(0)
    z, clusters = Deception(30, 10).draw(torch.zeros(5000, 3))
    assert z[:, :30].std().item() == pytest.approx(0.1, rel=0.02)
    assert torch.equal(z[:, 30:].argmax(1), clusters)
    assert torch.equal(z[:, 30:].sum(1), torch.ones(5000))
    assert (clusters.bincount() - 500).abs().max() < 120


def test_each_player_changes_itself_alone_and_the_critic_plays_more_often():
    X, _ = digits(250)
    seen = []

    class Spy(torch.optim.Adam):
        def step(self, *arguments):
            seen.append(len(self.param_groups[0]["params"]))
            return super().step(*arguments)

    estimator = ClusterGAN(10, **(SMALL | {"epochs": 2}))
    stages = list(estimator.stages(LastColumns(10)))
    for turn in stages[0].turns:
        turn.optimizer = Spy
    estimator.stages = lambda head: stages
    estimator.fit(X)
    assert seen == [4, 8, 4, 4, 4, 4] * 2  # two layers of critic; of generator and of encoder


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_normal": 0}, "n_normal must be"),
        ({"n_critic": 0}, "n_critic must be"),
        ({"sigma": 0}, "sigma must be a finite number above 0, got 0"),
        ({"penalty": -1}, "penalty must be"),
        ({"beta_normal": -1}, "beta_normal must be"),
        ({"beta_cluster": -1}, "beta_cluster must be"),
        ({"learning_rate": 0}, "learning rate of stage 'train' must be a finite number above 0"),
        ({"encoder": nn.Linear(64, 2)}, "encoder= is one of three players; pass all as autoencoder="),
    ],
    ids=str,
)
def test_T09_bad_parameters_raise_before_training(monkeypatch, parameters, message):
    monkeypatch.setattr("fastdc.training.Alternate.run", lambda *_: pytest.fail("training has begun"))
    with pytest.raises(ValueError, match=message):
        ClusterGAN(3, **parameters).fit(digits(50)[0])


def test_players_of_ones_own():
    X, _ = digits(100)
    own = GeneratorTriple(64, 4, 3, (16,), torch.Generator().manual_seed(3))
    fitted = ClusterGAN(3, autoencoder=own, **(SMALL | {"epochs": 1})).fit(X)
    assert fitted.transform(X).shape == (100, 7)


def test_clusters_of_equal_size_are_found():
    X, y = make_blobs(300, 5, centers=3, cluster_std=0.5, random_state=3)
    X = (X - X.mean(0)) / X.std(0)
    estimator = ClusterGAN(3, hidden=(64,), n_normal=4, epochs=300, batch_size=64, learning_rate=1e-3, random_state=0)
    assert adjusted_rand_score(y, estimator.fit_predict(X)) > 0.9


def test_the_library_exports_it():
    assert fastdc.ClusterGAN is ClusterGAN
