"""DEC and IDEC as estimators: conventions, results, faults. Small networks and few epochs."""

import copy
import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics import adjusted_rand_score
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

import fastdc
from fastdc.kernels.student_t import dec_loss, student_t_assign
from fastdc.methods import DEC, IDEC
from fastdc.networks import Centroids, MLPAutoencoder
from fastdc.terms import StudentT
from fastdc.training import Batch
from tests.method_cases import SMALL, scaled_blobs

pytestmark = pytest.mark.usefixtures("one_thread")

METHODS = [DEC, IDEC]


@pytest.fixture(scope="module")
def blobs():
    return scaled_blobs()


@pytest.fixture(params=METHODS, ids=lambda m: m.__name__)
def method(request):
    return request.param


@parametrize_with_checks([m(3, **(SMALL | {"random_state": None})) for m in METHODS])
def test_scikit_learn_conventions(estimator, check):
    check(estimator)


def test_clusters_are_found(method, blobs):
    X, y = blobs
    estimator = method(3, **SMALL).fit(X)
    assert adjusted_rand_score(y, estimator.labels_) == 1.0


def test_fitted_attributes(method, blobs):
    X, _ = blobs
    estimator = method(3, **SMALL).fit(X)
    assert estimator.labels_.dtype == np.int32
    assert estimator.labels_.shape == (150,)
    assert estimator.cluster_centers_.shape == (3, 2)
    assert estimator.n_features_in_ == 5
    assert 1 <= estimator.n_iter_ <= 8
    assert_array_equal(estimator.predict(X), estimator.labels_)
    assert_array_equal(estimator.fit_predict(X), estimator.labels_)
    z, q = estimator.transform(X), estimator.predict_proba(X)
    assert z.shape == (150, 2)
    scale = float(estimator.head_.scale)
    expected = student_t_assign(torch.from_numpy(z) / scale, torch.from_numpy(estimator.cluster_centers_) / scale)
    assert_allclose(q, expected, rtol=1e-6)
    assert_array_equal(q.argmax(1), estimator.labels_)
    assert_allclose(q.sum(1), 1, rtol=1e-6)


def test_history_tells_losses_and_label_changes(method, blobs):
    X, _ = blobs
    history = method(3, tol=None, update_interval=10, **SMALL).fit(X).history_
    epochs = [record for record in history if "loss" in record]
    assert [r["stage"] for r in epochs] == ["pretrain"] * 15 + ["refine"] * 8
    assert ("reconstruction" in epochs[-1]) == (method is IDEC)
    assert epochs[14]["loss"] < epochs[0]["loss"]
    refreshes = [record for record in history if "label_change" in record]
    assert [r["step"] for r in refreshes] == [0, 10, 20, 30]
    assert refreshes[0]["label_change"] == 1.0
    assert all(0 <= r["label_change"] <= 1 for r in refreshes)
    assert all(r["n_empty_clusters"] == 0 and 0 < r["smallest_cluster"] <= 50 for r in refreshes)
    assert refreshes[-1]["confidence"] > refreshes[0]["confidence"]
    assert refreshes[-1]["entropy"] < refreshes[0]["entropy"]


def test_idec_weighs_its_losses_by_gamma(blobs):
    X, _ = blobs
    record = [r for r in IDEC(3, gamma=0.7, **SMALL).fit(X).history_ if "loss" in r][-1]
    assert record["loss"] == pytest.approx(record["reconstruction"] + 0.7 * record["clustering"])


def test_dec_leaves_the_decoder_alone_and_idec_does_not(blobs):
    X, _ = blobs
    start = MLPAutoencoder(5, 2, (16,), torch.Generator().manual_seed(0))
    options = SMALL | {"pretrain_epochs": 0, "autoencoder": start, "tol": None}
    same = {m: torch.equal(m(3, **options).fit(X).network_.decoder[0].weight, start.decoder[0].weight) for m in METHODS}
    assert same == {DEC: True, IDEC: False}


@pytest.mark.parametrize("scale", [1.0, 0.6])
def test_the_target_of_a_refresh_is_that_of_the_paper(blobs, scale):
    """Two refreshes' worth of steps, retraced by plain torch with P of all rows."""
    X, _ = blobs
    x = torch.from_numpy(X)
    start = MLPAutoencoder(5, 2, (16,), torch.Generator().manual_seed(0))
    for n_clusters in (2, 4):  # P is stored where k <= d, rebuilt where k > d
        options = SMALL | {"pretrain_epochs": 0, "epochs": 4, "learning_rate": 1e-2, "tol": None}
        options |= {"target": "refresh", "scale": scale}
        estimator = DEC(n_clusters, autoencoder=start, update_interval=10, **options).fit(X)

        network = copy.deepcopy(start)
        initial = DEC(n_clusters, autoencoder=start, **(options | {"epochs": 0})).fit(X)
        centers = nn.Parameter(torch.from_numpy(initial.cluster_centers_.copy()))
        optimizer = torch.optim.Adam([*network.encoder.parameters(), centers], lr=1e-2)
        order = torch.Generator().manual_seed(0)
        step = 0
        for _ in range(4):
            for rows in torch.randperm(len(x), generator=order).tensor_split(5):
                if step % 10 == 0:
                    with torch.no_grad():
                        q = student_t_assign(network.encode(x) / scale, centers / scale)
                        p = q**2 / q.sum(0)
                        p /= p.sum(1, keepdim=True)
                optimizer.zero_grad()
                q = student_t_assign(network.encode(x[rows]) / scale, centers / scale)
                (torch.xlogy(p[rows], p[rows] / q).sum() / len(rows)).backward()
                optimizer.step()
                step += 1
        assert_allclose(estimator.cluster_centers_, centers.detach(), rtol=1e-3, atol=1e-5)


def test_the_scale_is_the_spread_within_the_first_clusters(method, blobs):
    """So that other units of the data or of the embedding change nothing."""
    X, _ = blobs
    start = MLPAutoencoder(5, 2, (16,), torch.Generator().manual_seed(0))
    options = SMALL | {"pretrain_epochs": 0, "epochs": 0}
    placed = method(3, autoencoder=start, **options).fit(X)
    apart = placed.transform(X) - placed.cluster_centers_[placed.labels_]
    assert float(placed.head_.scale) == pytest.approx(apart.std(), rel=1e-3)
    with torch.no_grad():
        start.encoder[-1].weight *= 5
        start.encoder[-1].bias *= 5
    larger = method(3, autoencoder=start, **options).fit(X)
    assert_allclose(larger.predict_proba(X), placed.predict_proba(X), rtol=1e-4)
    assert float(method(3, scale=2.0, **options).fit(X).head_.scale) == 2.0


def test_a_collapsed_embedding_keeps_the_scale_of_the_paper():
    with pytest.warns(ConvergenceWarning, match="clusters are empty"):
        assert float(DEC(2, **(SMALL | {"epochs": 0})).fit(np.ones((20, 3))).head_.scale) == 1.0


def test_batch_targets_come_from_the_rows_of_the_batch():
    z, network = torch.randn(9, 2, generator=torch.Generator().manual_seed(0)), nn.Identity()
    network.encode = network.forward
    head = Centroids(3, 2)
    head.place(z[:3])
    term = StudentT(head, "batch")
    term.refresh(z)
    rows = torch.tensor([1, 4, 7])
    expected = dec_loss(z[rows], head.centers)
    torch.testing.assert_close(term(Batch(network, z[rows], rows)), expected)


def test_training_stops_when_labels_settle(method, blobs):
    X, _ = blobs
    settled = method(3, update_interval=5, tol=1.0, **SMALL).fit(X)
    assert settled.n_iter_ == 1
    assert settled.history_[-1]["step"] == 5
    assert method(3, update_interval=5, tol=None, **SMALL).fit(X).n_iter_ == 8


def test_T44_the_same_seed_gives_the_same_result(method, blobs):
    X, _ = blobs
    first, second, other = (method(3, **(SMALL | {"random_state": seed})).fit(X) for seed in (5, 5, 6))
    assert_array_equal(first.transform(X), second.transform(X))
    assert_array_equal(first.cluster_centers_, second.cluster_centers_)
    assert first.history_ == second.history_
    assert not np.array_equal(first.cluster_centers_, other.cluster_centers_)


def test_global_random_states_are_left_alone_and_do_not_matter(method, blobs):
    X, _ = blobs
    dropout = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.3), nn.Linear(8, 2))
    estimator = method(3, encoder=dropout, decoder=nn.Linear(2, 5), **SMALL)
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch_before, numpy_before = torch.random.get_rng_state(), np.random.get_state()  # noqa: NPY002
        results.append(estimator.fit(X).transform(X))
        assert torch.equal(torch.random.get_rng_state(), torch_before)
        assert_array_equal(np.random.get_state()[1], numpy_before[1])  # noqa: NPY002
    assert_array_equal(*results)


def test_tensors_in_tensors_out(method, blobs):
    X, _ = blobs
    from_array = method(3, **SMALL).fit(X)
    x = torch.from_numpy(X)
    estimator = method(3, **SMALL).fit(x)
    for result in (
        estimator.labels_,
        estimator.cluster_centers_,
        estimator.predict(x),
        estimator.transform(x),
    ):
        assert isinstance(result, torch.Tensor)
        assert not result.requires_grad
    assert estimator.labels_.dtype == torch.int32
    assert_array_equal(estimator.labels_.numpy(), from_array.labels_)
    assert isinstance(estimator.predict(X), np.ndarray)


def test_T20_T25_layouts_and_inference_mode_give_the_same_labels(blobs):
    X, _ = blobs
    expected = DEC(3, **SMALL).fit(X).labels_
    assert_array_equal(DEC(3, **SMALL).fit(np.asfortranarray(X)).labels_, expected)
    assert_array_equal(DEC(3, **SMALL).fit(X[::-1][::-1]).labels_, expected)
    assert_array_equal(DEC(3, **SMALL).fit(X.tolist()).labels_, expected)
    with torch.inference_mode():
        assert_array_equal(DEC(3, **SMALL).fit(torch.from_numpy(X).clone()).labels_, expected)
    assert_array_equal(DEC(3, **SMALL).fit(torch.from_numpy(X).requires_grad_()).labels_, expected)


def test_T21_read_only_memmap(method, blobs, tmp_path):
    X, _ = blobs
    path = tmp_path / "x.npy"
    np.save(path, X)
    before = path.read_bytes()
    labels = method(3, **SMALL).fit_predict(np.load(path, mmap_mode="r"))
    assert_array_equal(labels, method(3, **SMALL).fit_predict(X))
    assert path.read_bytes() == before


def test_T01_T02_T04_bad_values_raise_before_training(method, blobs, monkeypatch):
    X, _ = blobs
    monkeypatch.setattr("fastdc.training.Train.run", lambda *_: pytest.fail("training has begun"))
    for value, message in [(np.nan, "contains NaN"), (np.inf, "contains infinity"), (1e300, "too large for")]:
        bad = X.astype(np.float64)
        bad[4, 2] = value
        for given in (bad, torch.from_numpy(bad)):
            with pytest.raises(ValueError, match=rf"{message}.*row 4, column 2"):
                method(3, **SMALL).fit(given)


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"n_clusters": 0}, ValueError, "n_clusters must be at least 1, got 0"),
        ({"n_clusters": -2}, ValueError, "n_clusters must be at least 1, got -2"),
        ({"n_clusters": 2.5}, TypeError, "n_clusters must be an integer, got 2.5"),
        ({"n_clusters": True}, TypeError, "n_clusters must be an integer, got True"),
        ({"n_clusters": 151}, ValueError, "n_clusters=151 must be at most n_samples=150"),
        ({"n_latent": 0}, ValueError, "n_latent must be at least 1"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"epochs": -1}, ValueError, "epochs must be at least 0"),
        ({"n_init": 0}, ValueError, "n_init must be at least 1"),
        ({"update_interval": 0}, ValueError, "update_interval must be at least 1"),
        ({"alpha": 0}, ValueError, "alpha must be a finite number above 0"),
        ({"tol": -0.1}, ValueError, "tol must be a share of the labels"),
        ({"learning_rate": -1.0}, ValueError, "learning rate of stage 'refine' must be"),
        ({"target": "epoch"}, ValueError, r"target must be one of \('refresh', 'batch'\), got 'epoch'"),
        ({"gamma": -1.0}, ValueError, "weight of the clustering loss must be finite and >= 0"),
        ({"random_state": "a"}, ValueError, "random_state must be None"),
        ({"autoencoder": 3}, TypeError, r"autoencoder must be a torch\.nn\.Module"),
        ({"encoder": nn.Linear(5, 2), "pretrain_epochs": 0}, ValueError, "has no decoder"),
        (
            {"encoder": nn.Unflatten(1, (5, 1)), "epochs": 0},
            ValueError,
            r"it returned \(1, 5, 1\) for one sample",
        ),
    ],
    ids=lambda v: str(v) if isinstance(v, dict) else "",
)
def test_T09_T11_bad_parameters_raise_before_training(blobs, monkeypatch, parameters, error, message):
    X, _ = blobs
    if parameters.get("pretrain_epochs") != 0:
        monkeypatch.setattr("fastdc.training.Train.run", lambda *_: pytest.fail("training has begun"))
    estimator = IDEC(**(SMALL | {"n_clusters": 3} | parameters))
    with pytest.raises(error, match=message):
        estimator.fit(X)
    with pytest.raises(NotFittedError):
        estimator.predict(X)


@pytest.mark.parametrize("shape", [(1, 5), (3, 1), (7, 4)], ids=str)
def test_T08_T10_T13_T14_tiny_shapes(method, shape):
    X = np.random.default_rng(0).normal(size=shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for n_clusters in {1, shape[0]}:
            estimator = method(n_clusters, **SMALL).fit(X)
            assert set(estimator.labels_) <= set(range(n_clusters))
            assert np.isfinite(estimator.cluster_centers_).all()


@pytest.mark.parametrize("value", [0.0, 1e-42, 3.5])
def test_T05_T06_constant_data_ends_with_a_warning(method, value):
    X = np.full((40, 3), value, dtype=np.float32)
    with pytest.warns(ConvergenceWarning, match=r"distinct clusters \(1\)"):
        estimator = method(3, **SMALL).fit(X)
    assert np.isfinite(estimator.cluster_centers_).all()
    assert len(set(estimator.labels_)) == 1
    refresh = next(record for record in estimator.history_ if "n_empty_clusters" in record)
    assert refresh["n_empty_clusters"] == 2


def test_diverging_training_raises_and_leaves_the_estimator_unfitted(method, blobs):
    X, _ = blobs
    estimator = method(3, **(SMALL | {"learning_rate": 1e30}))
    with pytest.raises(FloatingPointError, match=r"of stage 'refine': lower its|embedding is no longer finite: lower"):
        estimator.fit(X)
    with pytest.raises(NotFittedError):
        estimator.predict(X)


class Interrupt:
    """A callback that presses Ctrl-C in the third epoch of a stage."""

    def __init__(self, stage):
        self.stage = stage

    def __call__(self, record):
        if record["stage"] == self.stage and record["epoch"] == 2:
            raise KeyboardInterrupt


def test_T49_interrupted_refinement_keeps_what_was_reached(method, blobs):
    X, y = blobs
    estimator = method(3, callbacks=[Interrupt("refine")], tol=None, **SMALL)
    with pytest.raises(KeyboardInterrupt):
        estimator.fit(X)
    assert estimator.n_iter_ == 3
    assert_array_equal(estimator.predict(X), estimator.labels_)
    assert adjusted_rand_score(y, estimator.labels_) > 0.9


def test_T49_interrupted_pretraining_leaves_the_estimator_as_it_was(method, blobs):
    X, _ = blobs
    estimator = method(3, callbacks=[Interrupt("pretrain")], **SMALL)
    with pytest.raises(KeyboardInterrupt):
        estimator.fit(X)
    with pytest.raises(NotFittedError):
        estimator.predict(X)
    estimator.set_params(callbacks=None).fit(X)
    before = estimator.transform(X)
    estimator.set_params(callbacks=[Interrupt("pretrain")])
    with pytest.raises(KeyboardInterrupt):
        estimator.fit(X[:, :3])
    assert estimator.n_features_in_ == 5
    assert_array_equal(estimator.transform(X), before)


def test_a_users_network_is_copied_and_decides_the_dtype(method, blobs):
    X, _ = blobs
    own = MLPAutoencoder(5, 3, (8,), torch.Generator().manual_seed(0)).double()
    before = copy.deepcopy(own.state_dict())
    estimator = method(3, autoencoder=own, **SMALL).fit(X.astype(np.float64))
    assert all(torch.equal(value, before[name]) for name, value in own.state_dict().items())
    assert estimator.autoencoder is own
    assert estimator.cluster_centers_.shape == (3, 3)
    assert estimator.transform(X).dtype == np.float64


def test_pretrained_weights_are_a_start(blobs):
    X, _ = blobs
    first = IDEC(3, **SMALL).fit(X)
    second = DEC(3, autoencoder=first.network_, **(SMALL | {"pretrain_epochs": 0, "epochs": 0})).fit(X)
    assert_allclose(second.transform(X), first.transform(X))
    assert [r["stage"] for r in second.history_] == []
    expected = KMeans(3, n_init=3, random_state=0).fit(first.transform(X))
    assert adjusted_rand_score(second.labels_, expected.labels_) == 1.0


@pytest.mark.gpu
def test_gpu_and_cpu_agree(method, blobs):
    X, y = blobs
    x = torch.from_numpy(X).cuda()
    estimator = method(3, **SMALL).fit(x)
    assert estimator.labels_.device == x.device
    assert adjusted_rand_score(y, estimator.labels_.cpu()) == 1.0
    assert_array_equal(estimator.predict(X), estimator.labels_.cpu().numpy())
    assert isinstance(method(3, device="cuda", **SMALL).fit(X).labels_, np.ndarray)


def test_the_library_exports_them():
    assert fastdc.DEC is DEC
    assert fastdc.IDEC is IDEC
