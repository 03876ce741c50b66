"""Peers that run on GPUs only, replaced by stand-ins with the signatures of flash-kmeans 0.3.1, flashlib 0.4.0 and
inf-cl 1.2.1: that the benchmarks call them rightly, and say so where one is not installed.
"""

import sys
from types import ModuleType

import pytest
import torch

from bench import bench_contrastive, bench_kmeans, bench_neighbors
from bench._measure import _status_of
from bench._text import STATUS_WORDS

PEERS = [
    (bench_kmeans, "kmeans_lloyd", "flash-kmeans", "flash_kmeans"),
    (bench_kmeans, "kmeans_lloyd", "flashlib", "flashlib"),
    (bench_neighbors, "knn", "flashlib", "flashlib"),
    (bench_contrastive, "info_nce", "inf-cl", "inf_cl"),
]


def batch_kmeans_euclid(
    x, n_clusters, max_iters=100, tol=0.0, init_centroids=None, verbose=False, *, use_heuristic=True
):
    assert x.ndim == 3
    centers = init_centroids.view(x.shape[0], n_clusters, x.shape[2])[0].clone()
    for _ in range(max_iters):
        labels = torch.cdist(x[0], centers).argmin(1)
        sums = torch.zeros_like(centers).index_add(0, labels, x[0])
        counts = torch.bincount(labels, minlength=n_clusters)
        centers = torch.where(counts[:, None] > 0, sums / counts[:, None], centers)
    return labels[None], centers[None], max_iters


def flash_kmeans(x, n_clusters, *, max_iters=100, tol=0.0, init_centroids=None, verbose=False, metric="euclidean",
                 backend=None, variant=None):  # fmt: skip
    labels, centers, n_iter = batch_kmeans_euclid(x[None], n_clusters, max_iters, tol, init_centroids)
    return labels[0], centers[0], n_iter


def flash_knn(x, c, k, *, tol=None, backend=None, return_distances=True):
    return torch.cdist(x, c).square().topk(k, dim=1, largest=False)


def cal_flash_loss(q, k, labels=None, scale=None, head_dim=256):
    labels = torch.arange(q.shape[0]) if labels is None else labels
    q = scale * q.view(q.shape[0], -1, head_dim).float().flatten(1)
    k = k.view(k.shape[0], -1, head_dim).float().flatten(1)
    return (q @ k.T).logsumexp(1) - (q * k[labels]).sum(1)


@pytest.fixture
def _stand_ins(monkeypatch):
    for name, functions in {
        "flash_kmeans": {"batch_kmeans_Euclid": batch_kmeans_euclid},
        "flashlib": {"flash_kmeans": flash_kmeans, "flash_knn": flash_knn},
        "inf_cl": {"cal_flash_loss": cal_flash_loss},
    }.items():
        module = ModuleType(name)
        vars(module).update(functions)
        monkeypatch.setitem(sys.modules, name, module)


def bench_of(module, op):
    return next(bench for bench in module.BENCHES if bench.op == op)


@pytest.mark.usefixtures("_stand_ins")
@pytest.mark.parametrize(("module", "op", "name", "_package"), PEERS)
def test_a_peer_gives_the_truth(module, op, name, _package):
    bench = bench_of(module, op)
    for shape in (bench.tiny, {**bench.tiny, "m": 0}) if "m" in bench.tiny else (bench.tiny,):
        inputs = bench.inputs(**shape, dtype=torch.float32, device="cpu")
        found = bench.providers[name].make()(**inputs)
        truth = bench.truth(inputs, False)
        for output, value in zip(bench.outputs, found if isinstance(found, tuple) else (found,)):
            expected = truth[output]
            value, expected = (
                (value, expected) if torch.is_tensor(expected) else (value[expected.which], expected.values)
            )
            assert torch.allclose(value.double(), expected.double(), rtol=1e-4, atol=1e-5), output


@pytest.mark.parametrize(("module", "op", "name", "package"), PEERS)
def test_a_peer_that_is_not_there_is_missing(module, op, name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    provider = bench_of(module, op).providers[name]
    assert provider.devices == ("cuda",)
    with pytest.raises(ImportError) as failure:
        provider.make()
    assert STATUS_WORDS[_status_of(failure.value)] == "not installed"
