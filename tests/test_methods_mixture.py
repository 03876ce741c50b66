"""VaDE: conventions, its objective against plain torch, what it learns."""

import copy

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.datasets import make_blobs
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture as SklearnMixture
from torch import nn
from torch.distributions import Bernoulli, Categorical, Independent, MixtureSameFamily, Normal

import fastdc
from fastdc import VaDE
from fastdc.metrics import clustering_accuracy, normalized_mutual_info
from fastdc.networks import ConvVariationalAutoencoder, Mixture, MLPAutoencoder, VariationalAutoencoder
from fastdc.terms import Likelihood, MixtureEvidence
from fastdc.training import Batch
from tests.method_cases import check_conventions, check_resume, check_saving, digits

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {
    "n_latent": 4,
    "hidden": (32,),
    "pretrain_epochs": 6,
    "epochs": 6,
    "batch_size": 64,
    "pretrain_learning_rate": 1e-2,
    "tol": None,
    "n_init": 2,
    "random_state": 0,
}


@pytest.mark.parametrize(
    "options", [{}, {"likelihood": "gaussian", "variance": 0.1}, {"image_shape": (1, 8, 8)}], ids=str
)
def test_conventions_saving_and_resume(options, tmp_path, monkeypatch):
    X, _ = digits(200)
    estimator = VaDE(10, **(SMALL | options))
    fitted = check_conventions(estimator, X)
    check_saving(fitted, X, tmp_path / "m")
    check_resume(estimator, X, tmp_path, monkeypatch, fitted, (3, 7, 11))


def test_well_separated_clusters_are_found():
    X, y = make_blobs(150, 5, centers=3, cluster_std=0.5, random_state=3)
    X = ((X - X.mean(0)) / X.std(0)).astype(np.float32)
    vade = VaDE(3, likelihood="gaussian", variance=0.1, **(SMALL | {"n_latent": 2, "pretrain_epochs": 15})).fit(X)
    assert adjusted_rand_score(y, vade.labels_) == 1.0


def test_training_leaves_the_mixture_of_the_autoencoder_behind():
    """On all digits, a small network."""
    X, y = digits(1797)
    options = SMALL | {"n_latent": 10, "hidden": (256,), "pretrain_epochs": 30, "pretrain_learning_rate": 2e-3}
    options["covariance_type"] = "diag"
    start = VaDE(10, **(options | {"epochs": 0})).fit(X)
    options |= {"pretrain_epochs": 0, "autoencoder": start.network_, "epochs": 40}
    vade = VaDE(10, **options).fit(X)
    assert normalized_mutual_info(y, vade.labels_) > normalized_mutual_info(y, start.labels_) + 0.02
    assert clustering_accuracy(y, vade.labels_) > clustering_accuracy(y, start.labels_)


@pytest.mark.parametrize("kind", ["bernoulli", "gaussian"])
def test_the_bound_is_that_of_the_joint_density(kind):
    """Log densities by torch.distributions, the class summed out by its posterior; the entropy of z in closed form."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(7, 5, generator=generator, dtype=torch.float64)
    network = VariationalAutoencoder(5, 3, (6,), generator).double()
    head = Mixture(4, 3).double()
    head.place(
        *(torch.rand(4, 3, generator=generator, dtype=torch.float64) for _ in range(2)),
        torch.tensor([0.1, 0.2, 0.3, 0.4]),
    )
    likelihood = Likelihood(kind, variance=0.3)
    noise = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    network.sample = lambda mean, log_var: mean + (log_var / 2).exp() * noise
    loss = MixtureEvidence(head, likelihood)(Batch(network, x, torch.arange(7)))

    mean, log_var = network.posterior(x)
    z = network.sample(mean, log_var)
    decoded = network.decode(z)
    if kind == "bernoulli":
        reconstruction = -Bernoulli(logits=decoded, validate_args=False).log_prob(x).sum(1)
    else:
        reconstruction = -Normal(decoded, 0.3**0.5).log_prob(x).sum(1) - 5 / 2 * np.log(2 * np.pi * 0.3)
    scales = (head.log_vars / 2).exp()
    log_pi = head.logits.log_softmax(0)
    log_joint = log_pi + Normal(head.means, scales).log_prob(z[:, None]).sum(2)
    log_gamma = log_joint.log_softmax(1)
    prior = Independent(Normal(head.means, scales), 1)
    assert_allclose(
        MixtureSameFamily(Categorical(logits=head.logits), prior).log_prob(z).detach(),
        log_joint.logsumexp(1).detach(),
    )
    posterior = Normal(mean[:, None], (log_var / 2).exp()[:, None])
    cross = torch.distributions.kl_divergence(posterior, Normal(head.means, scales)).sum(2)
    divergence = (log_gamma.exp() * (cross + log_gamma - log_pi)).sum(1)
    torch.testing.assert_close(loss, (reconstruction + divergence).mean(), check_dtype=False)


def test_a_fit_retraced_by_plain_torch():
    X, _ = digits(120)
    x = torch.from_numpy(X).double()  # float32 would drift apart in twelve steps
    start = VariationalAutoencoder(64, 3, (16,), torch.Generator().manual_seed(0)).double()
    options = SMALL | {"pretrain_epochs": 0, "autoencoder": start, "batch_size": None, "learning_rate": 1e-2}
    options["covariance_type"] = "diag"
    placed = VaDE(5, **(options | {"epochs": 0})).fit(X)
    vade = VaDE(5, **(options | {"epochs": 12})).fit(X)
    rates = []
    network, head = copy.deepcopy(start), copy.deepcopy(placed.head_)
    optimizer = torch.optim.Adam([*network.parameters(), *head.parameters()], lr=1e-2)
    torch.manual_seed(0)
    for epoch in range(12):
        optimizer.param_groups[0]["lr"] = 1e-2 * 0.9 ** (epoch // 10)
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.zero_grad()
        mean, log_var = network.posterior(x)
        z = mean + (log_var / 2).exp() * torch.randn_like(mean)
        reconstruction = -Bernoulli(logits=network.decode(z), validate_args=False).log_prob(x).sum(1).mean()
        scales = (head.log_vars / 2).exp()
        log_pi = head.logits.log_softmax(0)
        log_gamma = (log_pi + Normal(head.means, scales).log_prob(z[:, None]).sum(2)).log_softmax(1)
        posterior = Normal(mean[:, None], (log_var / 2).exp()[:, None])
        cross = torch.distributions.kl_divergence(posterior, Normal(head.means, scales)).sum(2)
        (reconstruction + (log_gamma.exp() * (cross + log_gamma - log_pi)).sum(1).mean()).backward()
        optimizer.step()
    assert rates[9:] == [1e-2, 1e-2 * 0.9, 1e-2 * 0.9]
    assert_allclose(vade.cluster_centers_, head.means.detach(), rtol=1e-4, atol=1e-6)


def test_clusters_come_from_the_mixture_at_the_mean():
    X, _ = digits(150)
    vade = VaDE(10, covariance_type="diag", **SMALL).fit(X)
    head = vade.head_
    z = torch.from_numpy(vade.transform(X)).double()
    log_joint = head.logits.log_softmax(0) + Normal(head.means, (head.log_vars / 2).exp()).log_prob(z[:, None]).sum(2)
    assert_allclose(vade.predict_proba(X), log_joint.softmax(1).detach(), rtol=1e-3, atol=1e-5)
    assert_array_equal(vade.labels_, log_joint.argmax(1))


def test_full_covariances_go_on_from_the_trained_mixture():
    """As scikit-learn's mixture does from there."""
    X, y = digits(600)
    options = SMALL | {"hidden": (64,), "pretrain_epochs": 20}
    trained, vade = (VaDE(10, covariance_type=kind, **options).fit(X) for kind in ("diag", "full"))
    z, head = trained.transform(X).astype(np.float64), trained.head_
    assert_array_equal(vade.transform(X), trained.transform(X))
    peer = SklearnMixture(
        10,
        reg_covar=0.05 * z.var(0).mean(),
        means_init=head.means.detach(),
        weights_init=head.logits.detach().double().softmax(0),
        precisions_init=torch.diag_embed((-head.log_vars.detach().double()).exp()),
    ).fit(z)
    assert_allclose(vade.predict_proba(X), peer.predict_proba(z), atol=5e-3)
    assert_allclose(vade.head_.covariances, peer.covariances_, rtol=1e-2, atol=1e-3)
    assert_allclose(vade.cluster_centers_, peer.means_, rtol=1e-2, atol=1e-3)
    assert normalized_mutual_info(y, vade.labels_) > normalized_mutual_info(y, trained.labels_)


def test_a_collapsed_embedding_has_a_mixture():
    X = np.full((60, 4), 0.5, np.float32)
    with pytest.warns(ConvergenceWarning, match="clusters are empty"):
        vade = VaDE(3, **SMALL).fit(X)
    assert np.isfinite(vade.predict_proba(X)).all()


def test_convolutional_posterior():
    network = ConvVariationalAutoencoder((1, 8, 8), 3, (4, 8), torch.Generator().manual_seed(0))
    mean, log_var = network.posterior(torch.ones(2, 64))
    torch.testing.assert_close(mean, network.encode(torch.ones(2, 64)))
    assert mean.shape == log_var.shape == (2, 3)
    assert not torch.equal(mean, log_var)
    assert network.decode(mean).shape == (2, 64)


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        (
            {"likelihood": "poisson"},
            ValueError,
            r"likelihood must be one of \('bernoulli', 'gaussian'\), got 'poisson'",
        ),
        ({"covariance_type": "tied"}, ValueError, "covariance_type must be 'full' or 'diag', got 'tied'"),
        ({"variance": 0}, ValueError, "variance must be a finite number above 0, got 0"),
        (
            {"autoencoder": MLPAutoencoder(64, 2, (4,))},
            TypeError,
            "VaDE's network must have posterior and sample, as fastdc.networks.VariationalAutoencoder has; got a MLP",
        ),
        ({"encoder": nn.Linear(64, 2), "decoder": nn.Linear(2, 64)}, TypeError, "got a Autoencoder"),
    ],
    ids=lambda v: str(list(v)) if isinstance(v, dict) else "",
)
def test_bad_parameters_raise_before_training(monkeypatch, parameters, error, message):
    monkeypatch.setattr("fastdc.training.Train.run", lambda *_: pytest.fail("training has begun"))
    with pytest.raises(error, match=message):
        VaDE(3, **parameters).fit(digits(100)[0])


def test_values_beyond_the_unit_range_raise_before_training(monkeypatch):
    monkeypatch.setattr("fastdc.training.Train.run", lambda *_: pytest.fail("training has begun"))
    X, _ = digits(100)
    with pytest.raises(ValueError, match=r"needs values from 0 to 1, X has -0\.5 to 0\.5; scale them, or pass likel"):
        VaDE(3, **SMALL).fit(X - 0.5)


def test_the_library_exports_it():
    assert fastdc.VaDE is VaDE
    assert clone(VaDE(4)).get_params()["n_clusters"] == 4
