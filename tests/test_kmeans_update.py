"""New centers from sums, and rows for clusters that have none."""

import pytest
import torch

from fastdc.kernels.kmeans import KMeansStep, center_update, kmeans_step, repair_empty


def test_an_empty_cluster_keeps_its_center():
    sums, counts = torch.tensor([[6.0, 2.0], [0.0, 0.0]]).double(), torch.tensor([2.0, 0.0]).double()
    centers = torch.tensor([[0.0, 0.0], [7.0, 8.0]])
    assert center_update(sums, counts, centers).tolist() == [[3.0, 1.0], [7.0, 8.0]]
    assert center_update(sums, counts, centers.half()).dtype == torch.float16


def moved(x, centers, weight=None):
    """Centers after one step with repair."""
    step = kmeans_step(x, centers, sample_weight=weight)
    sums, counts = repair_empty(x, centers, step.labels, step.sums, step.counts, sample_weight=weight)
    total = torch.ones(len(x)).sum() if weight is None else weight.sum()
    assert counts.sum().item() == pytest.approx(total.item())
    return center_update(sums, counts, centers)


def test_empty_clusters_take_the_farthest_rows():
    x = torch.tensor([[0.0], [1.0], [4.0], [9.0], [-7.0]])
    centers = torch.tensor([[0.0], [500.0], [600.0]])
    assert moved(x, centers)[:, 0].tolist() == pytest.approx([5 / 3, 9.0, -7.0])
    tie = torch.tensor([[0.0], [2.0], [-2.0]])
    assert moved(tie, torch.tensor([[0.0], [90.0]]))[:, 0].tolist() == [-1.0, 2.0]


def test_weighted_rows_move_with_their_weight():
    x = torch.tensor([[0.0], [1.0], [8.0], [9.0]])
    weight = torch.tensor([1.0, 3.0, 2.0, 0.0])  # the last row weighs nothing and stays
    assert moved(x, torch.tensor([[0.0], [500.0]]), weight)[:, 0].tolist() == [0.75, 8.0]


def test_nothing_moves_without_reason():
    x, centers = torch.randn(60, 3), torch.randn(4, 3)
    step = kmeans_step(x, centers)
    sums, counts = repair_empty(x, centers, step.labels, step.sums, step.counts)
    assert torch.equal(sums, step.sums)
    assert torch.equal(counts, step.counts)
    same = torch.ones(5, 1)  # all rows lie on a center: the empty cluster stays empty
    assert moved(same, torch.tensor([[1.0], [3.0]])).tolist() == [[1.0], [3.0]]
    lonely = torch.tensor([[0.0], [5.0]])  # each the last row of its cluster
    assert moved(lonely, torch.tensor([[0.5], [4.0], [90.0]]))[:, 0].tolist() == [0.0, 5.0, 90.0]


def test_a_cluster_that_gives_all_its_rows_keeps_its_center():
    x = torch.tensor([[0.1], [0.2]])
    weight = torch.tensor([0.1, 0.2])
    assert torch.allclose(moved(x, torch.tensor([[0.0], [50.0], [60.0]]), weight), torch.tensor([[0.0], [0.2], [0.1]]))


def test_bad_sums():
    centers, sums, counts = torch.zeros(2, 3), torch.zeros(2, 3).double(), torch.ones(2).double()
    with pytest.raises(ValueError, match=r"counts must have shape \(2,\)"):
        center_update(sums, counts[:1], centers)
    with pytest.raises(ValueError, match=r"sums must have the shape of centers, \(2, 3\), got \(2, 2\)"):
        center_update(sums[:, :2], counts, centers)
    with pytest.raises(ValueError, match="at least one chunk"):
        KMeansStep.merge([])
