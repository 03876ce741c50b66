"""DCN, DKM, optimal transport and two stages: conventions, objectives against plain torch, what they learn."""

import copy

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.cluster import DBSCAN as SklearnDBSCAN
from sklearn.cluster import AgglomerativeClustering
from sklearn.cluster import KMeans as SklearnKMeans
from sklearn.datasets import make_blobs
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score
from torch import nn

import fastdc
from fastdc import DCN, DKM, GaussianMixture, KMeans, OptimalTransportClustering, TwoStage
from fastdc.metrics import clustering_accuracy
from fastdc.networks import Centroids, LinearAutoencoder, MLPAutoencoder, SoftCentroids
from fastdc.terms import OptimalTransport, RunningMeans
from fastdc.training import Batch, LabelChange, Stage
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
    "n_init": 3,
    "random_state": 0,
}
METHODS = {
    "DCN": DCN(10, **SMALL),
    "DKM": DKM(10, **SMALL),
    "DKM, annealed": DKM(10, alpha=None, **SMALL),
    "transport": OptimalTransportClustering(10, **SMALL),
    "two stages": TwoStage(10, **SMALL),
    "two stages, mixture": TwoStage(10, clusterer=GaussianMixture(reg_covar=1e-3), **SMALL),
}


@pytest.fixture(params=METHODS.values(), ids=METHODS)
def estimator(request):
    return clone(request.param)


def test_conventions_saving_and_resume(estimator, tmp_path, monkeypatch):
    X, _ = digits(200)
    fitted = check_conventions(estimator, X)
    check_saving(fitted, X, tmp_path / "m")
    epochs = (2, 5) if isinstance(estimator, TwoStage) else (3, 7, 11)
    check_resume(estimator, X, tmp_path, monkeypatch, fitted, epochs)


@pytest.mark.parametrize("method", [DCN, DKM, OptimalTransportClustering, TwoStage])
def test_well_separated_clusters_are_found(method):
    X, y = make_blobs(150, 5, centers=3, cluster_std=0.5, random_state=3)
    X = ((X - X.mean(0)) / X.std(0)).astype(np.float32)
    options = SMALL | {"n_latent": 2, "pretrain_epochs": 15}
    assert adjusted_rand_score(y, method(3, **options).fit(X).labels_) == 1.0


def test_refinement_leaves_kmeans_behind():
    """On all digits, a small network: k-means on pixels has an accuracy of 0.79, and 0.80 on what was pre-trained."""
    X, y = digits(1797)
    options = SMALL | {"n_latent": 10, "hidden": (128,), "pretrain_epochs": 30, "pretrain_learning_rate": 3e-3}
    start = TwoStage(10, **options).fit(X)
    options |= {"pretrain_epochs": 0, "autoencoder": start.network_, "epochs": 25}
    baseline = clustering_accuracy(y, start.labels_)
    for method in (DCN, DKM, OptimalTransportClustering):
        assert clustering_accuracy(y, method(10, **options).fit(X).labels_) > baseline


def one_by_one(centers, counts, z):
    """The paper's update, a row at a time: labels first, of centers as they are."""
    labels = torch.cdist(z, centers).argmin(1)
    centers, counts = centers.clone(), counts.clone()
    for label, row in zip(labels, z):
        counts[label] += 1
        centers[label] -= (centers[label] - row) / counts[label]
    return centers, counts


class Halves:
    """What two processes tell each other, as seen by one that knows what the other says."""

    size = 2

    def __init__(self, other):
        self.other = other

    def mean(self, values):
        values.copy_((values + self.other) / 2)


def test_running_means_are_those_of_one_row_after_the_other():
    z, network = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), nn.Identity()
    network.encode = network.forward
    head = Centroids(5, 3)
    head.place(z[:5])
    term = RunningMeans(head, initial_count=2.0)
    centers, counts = z[:5].double(), torch.full((5,), 2.0, dtype=torch.float64)
    for rows in (torch.arange(0, 25), torch.arange(25, 40)):
        term.after_step(Batch(network, z[rows], rows))
        centers, counts = one_by_one(centers, counts, z[rows].double())
        assert_allclose(head.centers.detach(), centers, rtol=1e-5, atol=1e-6)
    assert_array_equal(term.memory["counts"][:, 0], counts)


def test_running_means_of_two_processes_are_those_of_all_rows():
    z, network = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)), nn.Identity()
    network.encode = network.forward
    together, apart = Centroids(4, 3), Centroids(4, 3)
    together.place(z[:4])
    apart.place(z[:4])
    RunningMeans(together).after_step(Batch(network, z, torch.arange(20)))
    labels = torch.cdist(z[12:], z[:4]).argmin(1)
    other = torch.zeros(4, 4, dtype=torch.float64).index_add_(
        0, labels, nn.functional.pad(z[12:], (0, 1), value=1.0).double()
    )
    batch = Batch(network, z[:12], torch.arange(12))
    batch.ranks = Halves(other)
    RunningMeans(apart).after_step(batch)
    torch.testing.assert_close(apart.centers, together.centers)


class Move(Stage):
    """Does something to the centers."""

    def __init__(self, head, change):
        self.head, self.change = head, change

    def run(self, trainer):
        with torch.no_grad():
            self.change(self.head.centers)


def lloyd(z, centers):
    """The centers ten steps of k-means later."""
    for _ in range(10):
        labels = torch.cdist(z, centers).argmin(1)
        centers = torch.stack([z[labels == k].mean(0) for k in range(len(centers))])
    return centers


def test_dcn_retraced_by_plain_torch():
    X, _ = digits(150)
    x = torch.from_numpy(X)
    start = MLPAutoencoder(64, 3, (16,), torch.Generator().manual_seed(0))
    options = SMALL | {"pretrain_epochs": 0, "autoencoder": start, "batch_size": 50, "learning_rate": 2e-3}
    dcn = DCN(6, lam=45.0, initial_count=5.0, update_interval=6, **(options | {"epochs": 3})).fit(X)

    network = copy.deepcopy(start)
    centers = torch.from_numpy(DCN(6, **(options | {"epochs": 0})).fit(X).cluster_centers_.copy())
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    order = torch.Generator().manual_seed(0)
    for epoch in range(3):
        if epoch in (0, 2):
            centers, counts = lloyd(network.encode(x).detach(), centers), torch.full((6,), 5.0)
        for rows in torch.randperm(len(x), generator=order).tensor_split(3):
            optimizer.zero_grad()
            z = network.encode(x[rows])
            nearest = torch.cdist(z, centers).min(1).values
            ((network.decode(z) - x[rows]).square().sum(1).mean() + 45 / 2 * nearest.square().mean()).backward()
            optimizer.step()
            with torch.no_grad():
                centers, counts = one_by_one(centers, counts, network.encode(x[rows]))
    assert_allclose(dcn.cluster_centers_, centers, rtol=1e-3, atol=1e-4)


def test_dkm_is_the_formula_of_the_paper():
    X, _ = digits(100)
    x = torch.from_numpy(X)
    start = MLPAutoencoder(64, 3, (16,), torch.Generator().manual_seed(0))
    options = SMALL | {"pretrain_epochs": 0, "autoencoder": start, "batch_size": None}
    alphas = {0.0: 0.5, 1 / 2: 4.0, 1.0: 9.0}
    dkm = DKM(6, lam=0.3, alpha=alphas.get, **(options | {"epochs": 2})).fit(X)

    network = copy.deepcopy(start)
    centers = nn.Parameter(torch.from_numpy(DKM(6, **(options | {"epochs": 0})).fit(X).cluster_centers_.copy()))
    optimizer = torch.optim.Adam([*network.parameters(), centers], lr=1e-3)
    for alpha in (0.5, 4.0):
        optimizer.zero_grad()
        z = network.encode(x)
        sq_dists = (z[:, None] - centers).square().sum(2)
        soft = ((-alpha * sq_dists).softmax(1) * sq_dists).sum(1).mean()
        ((network.decode(z) - x).square().sum(1).mean() + 0.3 * soft).backward()
        optimizer.step()
    assert_allclose(dkm.cluster_centers_, centers.detach(), rtol=1e-4, atol=1e-5)
    z = torch.from_numpy(dkm.transform(X))
    sq_dists = torch.cdist(z.double(), centers.detach().double()).square()
    assert_allclose(dkm.predict_proba(X), (-9 * sq_dists).softmax(1), rtol=1e-2, atol=1e-4)
    assert_array_equal(dkm.labels_, sq_dists.argmin(1))


@pytest.mark.parametrize(("alpha", "goes_on"), [(1000.0, True), (lambda progress: 1000.0, False)])
def test_dkm_goes_on_with_kmeans_at_a_refresh_if_alpha_is_a_number(alpha, goes_on):
    X, _ = digits(150)

    class Moved(DKM):
        def stages(self, head):
            *before, refinement = super().stages(head)
            yield from [*before, Move(head, lambda centers: centers.mul_(1.05)), refinement]

    options = SMALL | {"learning_rate": 1e-12, "epochs": 1}
    start = DKM(6, **options | {"epochs": 0}).fit(X)
    z, moved = torch.from_numpy(start.transform(X)), torch.from_numpy(start.cluster_centers_) * 1.05
    expected = lloyd(z, moved) if goes_on else moved
    assert_allclose(Moved(6, alpha=alpha, **options).fit(X).cluster_centers_, expected, rtol=1e-4, atol=1e-5)


def test_soft_centroids_keep_their_temperature():
    head = SoftCentroids(2, 1, temperature=0.25)
    head.place(torch.tensor([[0.0], [1.0]]))
    other = SoftCentroids(2, 1)
    other.load_state_dict(head.state_dict())
    z = torch.tensor([[0.25], [7.0]])
    expected = (-torch.cdist(z, head.centers.detach()).square() / 0.25).softmax(1)
    assert_allclose(other.assign(z), expected, rtol=1e-5, atol=1e-12)


def test_transport_gives_each_cluster_its_share():
    """Twelve rows, three groups of 6, 4 and 2: the plan keeps to the shares, whatever the batch."""
    z = torch.tensor([0.0] * 6 + [1.0] * 4 + [2.0] * 2)[:, None] + torch.linspace(0, 0.5, 12)[:, None]
    network = nn.Identity()
    network.encode = network.forward
    head = Centroids(3, 1)
    head.place(torch.tensor([[2.3], [0.1], [1.2]]))
    term = OptimalTransport(head, 10.0, torch.tensor([4.0, 1.0, 1.0], dtype=torch.float64))
    term.refresh(z)
    assert term.memory["shares"].tolist() == [1.0, 4.0, 1.0]
    cost = (z - head.centers.detach().T).square()
    assert term.epsilon == pytest.approx(10 * float(cost.min(1).values.mean()), rel=1e-5)
    log_plan, u = -cost.double() / term.epsilon, torch.zeros(12, dtype=torch.float64)
    for _ in range(100):  # as many as the loss takes
        v = torch.tensor([1 / 6, 4 / 6, 1 / 6], dtype=torch.float64).log() - (log_plan + u[:, None]).logsumexp(0)
        u = -np.log(12) - (log_plan + v).logsumexp(1)
    plan = (log_plan + u[:, None] + v).exp()
    loss = term(Batch(network, z, torch.arange(12)))
    assert float(loss.detach()) == pytest.approx(float((plan * cost).sum()), rel=1e-6)


def test_principal_components_are_those_of_scikit_learn():
    X, _ = digits(120)
    network = LinearAutoencoder(64, 5)
    network.place(torch.from_numpy(X))
    z = network.encode(torch.from_numpy(X)).detach().numpy()
    expected = PCA(5, svd_solver="full").fit(X)
    assert_allclose(np.abs(z), np.abs(expected.transform(X)), rtol=1e-3, atol=1e-5)
    restored = network.decode(torch.from_numpy(z)).detach().numpy()
    assert_allclose(restored, expected.inverse_transform(expected.transform(X)), atol=1e-5)


def test_two_stages_are_what_the_clusterer_makes_of_the_embedding():
    X, _ = digits(200)
    pca = TwoStage(10, embedding="pca", n_latent=6, random_state=3).fit(X)
    assert_array_equal(pca.labels_, KMeans(10, n_init=20, random_state=3).fit_predict(pca.transform(X)))
    assert_allclose(pca.cluster_centers_, pca.clusterer_.cluster_centers_, rtol=1e-4, atol=1e-5)
    plain = TwoStage(10, embedding="identity", clusterer=SklearnKMeans(2, n_init=1), random_state=3).fit(X)
    assert_array_equal(plain.labels_, SklearnKMeans(10, n_init=1, random_state=3).fit_predict(X))
    assert_array_equal(plain.predict(X[:9]), plain.labels_[:9])
    assert_array_equal(plain.transform(X), X)
    assert not hasattr(plain, "predict_proba")


def test_clusterers_without_predict_and_with_noise():
    X, _ = digits(200)
    agglomerative = TwoStage(10, embedding="identity", clusterer=AgglomerativeClustering()).fit(X)
    assert len(set(agglomerative.labels_)) == 10
    assert not hasattr(agglomerative, "predict")
    noisy = TwoStage(embedding="identity", clusterer=SklearnDBSCAN(eps=1.2, min_samples=3)).fit(X)
    assert -1 in noisy.labels_
    assert_allclose(noisy.cluster_centers_[0], X[noisy.labels_ == 0].mean(0), rtol=1e-5, atol=1e-6)


def test_only_clusterers_of_the_library_are_saved(tmp_path):
    X, _ = digits(100)
    foreign = TwoStage(3, embedding="pca", clusterer=SklearnKMeans(n_init=1), random_state=0).fit(X)
    with pytest.raises(TypeError, match="clusterer_ is a KMeans, no estimator of fastdc: only those can be saved"):
        foreign.save(tmp_path / "m")
    own = TwoStage(3, embedding="pca", clusterer=GaussianMixture(tol=0.01), random_state=0).fit(X)
    own.save(tmp_path / "m")
    loaded = TwoStage.load(tmp_path / "m")
    assert loaded.clusterer.tol == 0.01
    assert loaded.clusterer_.history_ == own.clusterer_.history_
    assert_array_equal(loaded.clusterer_.means_, own.clusterer_.means_)


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (DCN(3, lam=-1.0), "weight of the clustering loss must be finite and >= 0, got -0.5"),
        (DCN(3, initial_count=0), "initial_count must be a finite number above 0, got 0"),
        (DKM(3, alpha=-1.0), r"alpha must be a finite number above 0, got -1\.0"),
        (OptimalTransportClustering(3, epsilon=0.0), r"epsilon must be a finite number above 0, got 0\.0"),
        (
            OptimalTransportClustering(3, cluster_sizes=[1, 2]),
            r"cluster_sizes must be 3 numbers above 0, one for each cluster, got \[1, 2\]",
        ),
        (TwoStage(3, embedding="umap"), r"embedding must be one of \('autoencoder', 'pca', 'identity'\), got 'umap'"),
        (TwoStage(3, embedding="pca", n_latent=65), "n_latent=65 must be at most n_features=64"),
    ],
    ids=lambda v: type(v).__name__ if not isinstance(v, str) else "",
)
def test_bad_parameters_raise_before_training(monkeypatch, estimator, message):
    monkeypatch.setattr("fastdc.training.Train.run", lambda *_: pytest.fail("training has begun"))
    with pytest.raises(ValueError, match=message):
        estimator.fit(digits(100)[0])


def test_the_library_exports_them():
    assert fastdc.DCN is DCN
    assert {"DCN", "DKM", "OptimalTransportClustering", "TwoStage"} <= set(fastdc.__all__)


@pytest.mark.parametrize("method", [DCN, DKM, OptimalTransportClustering])
def test_a_cluster_that_lost_its_rows_gets_the_farthest_one(method):
    class Losing(method):
        def stages(self, head):
            *before, refinement = super().stages(head)
            yield from [*before, Move(head, lambda centers: centers[0].add_(1e4)), refinement]  # where no row comes

    X, _ = digits(200)
    fitted = Losing(10, **SMALL | {"epochs": 3, "tol": 1.0, "update_interval": 4}).fit(X)
    first, *others = [record for record in fitted.history_ if "n_repaired_clusters" in record]
    assert first["n_empty_clusters"] == first["n_repaired_clusters"] == 1
    assert others[-1]["n_empty_clusters"] == 0
    assert len(np.unique(fitted.labels_)) == 10
    assert np.abs(fitted.cluster_centers_).max() < 1e3


def test_a_repaired_center_lies_on_the_farthest_row_and_all_count_anew():
    z = torch.tensor([[0.0, 0.0], [0.0, 1.0], [9.0, 0.0]])
    head = Centroids(3, 2)
    head.place(torch.tensor([[0.0, 0.0], [500.0, 0.0], [0.0, -400.0]]))
    term = RunningMeans(head, initial_count=5.0)
    term.memory["counts"] = torch.tensor([[20.0], [20.0], [20.0]])
    measured = term.refresh(z)
    assert (measured["n_empty_clusters"], measured["n_repaired_clusters"]) == (2, 2)
    assert_array_equal(head.centers.detach(), [[0, 0], [9, 0], [0, 1]])
    network = nn.Identity()
    network.encode = network.forward
    term.after_step(Batch(network, z[1:2], torch.tensor([1])))
    assert_array_equal(term.memory["counts"][:, 0], [5, 5, 6])
    assert not LabelChange(1.0)({key: float(value) for key, value in measured.items()})
    assert LabelChange(1.0)({key: float(value) for key, value in term.refresh(z).items()})


@pytest.mark.parametrize("rows", [torch.ones(4, 2), torch.full((4, 2), torch.nan)], ids=["equal", "not finite"])
def test_what_cannot_be_repaired_stays(rows):
    head = Centroids(2, 2)
    head.place(torch.tensor([[1.0, 1.0], [500.0, 0.0]]))
    assert RunningMeans(head).refresh(rows)["n_repaired_clusters"] == 0
    assert_array_equal(head.centers.detach(), [[1, 1], [500, 0]])
