"""k-means‖: scalable seeding."""

import numpy as np
import pytest
import torch

from fastdc import KMeans, kmeans_parallel, kmeans_plusplus, kmeans_step

BACKENDS = ["reference", "numba"]


def make_blobs(n, k, d, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centers = 10 * torch.randn(k, d, generator=generator)
    return centers[torch.arange(n) % k] + 0.1 * torch.randn(n, d, generator=generator)


def test_finds_every_blob():
    x = make_blobs(2000, 20, 8)
    found = kmeans_parallel(x, 20, random_state=0)
    assert torch.equal(found.centers, x[found.indices])
    assert (found.indices % 20).unique().numel() == 20


def test_as_good_as_plusplus():
    x = torch.randn(3000, 10)
    costs = [
        np.mean([float(kmeans_step(x, seeding(x, 50, random_state=s).centers).inertia) for s in range(5)])
        for seeding in (kmeans_parallel, kmeans_plusplus)
    ]
    assert costs[0] <= 1.05 * costs[1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_backends_draw_the_same(dtype):
    x = make_blobs(300, 6, 5).to(dtype)
    weight = torch.rand(300)
    a, b = (kmeans_parallel(x, 6, sample_weight=weight, random_state=3, backend=name).indices for name in BACKENDS)
    assert torch.equal(a, b)


def test_the_seed_decides_and_threads_do_not():
    x = torch.randn(3000, 6)
    first = kmeans_parallel(x, 30, random_state=1).indices
    torch.set_num_threads(1)
    assert torch.equal(kmeans_parallel(x, 30, random_state=1).indices, first)
    assert not torch.equal(kmeans_parallel(x, 30, random_state=2).indices, first)


def test_rows_without_weight_or_with_nan_are_not_chosen():
    x = torch.randn(400, 4)
    x[:100, 2], weight = torch.nan, torch.ones(400)
    weight[100:300] = 0
    assert kmeans_parallel(x, 20, sample_weight=weight, random_state=0).indices.min() >= 300


def test_T07_fewer_distinct_rows_than_centers():
    x = torch.tensor([[0.0], [1.0], [2.0]]).repeat(50, 1)
    assert len(kmeans_parallel(x, 6, random_state=0).centers[:3].unique()) == 3
    assert kmeans_parallel(x, 150, random_state=0).indices.shape == (150,)


def test_estimator_starts_with_it():
    x = make_blobs(1000, 12, 5).numpy()
    model = KMeans(12, init="k-means||", random_state=0).fit(x)
    assert len(np.unique(model.labels_)) == 12
    assert model.inertia_ < 1000 * 5 * 0.011


BAD = [
    (dict(n_clusters=0), ValueError, "n_clusters must be at least 1, got 0"),
    (dict(n_clusters=4), ValueError, "n_clusters=4 must be at most n_samples=3; ask for fewer clusters"),
    (dict(n_rounds=1.5), TypeError, "n_rounds must be an integer, got 1.5 of type float"),
    (dict(oversampling=0.0), ValueError, "oversampling must be a finite number above 0, got 0.0"),
    (dict(sample_weight=torch.ones(2)), ValueError, r"sample_weight must have shape \(3,\)"),
    (dict(random_state="x"), ValueError, "random_state must be None, an integer of at least 0"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD, ids=lambda v: v if isinstance(v, str) else "")
def test_bad_input(options, error, message):
    arguments = {"n_clusters": 2, **options}
    with pytest.raises(error, match=message):
        kmeans_parallel(torch.zeros(3, 2), **arguments)
