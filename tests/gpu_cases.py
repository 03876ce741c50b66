"""How a call of ``fastdc.kernels._calls`` is held against float64, on any device."""

import torch

from fastdc.kernels._accuracy import assert_not_worse_than_torch, relative_error
from fastdc.kernels._calls import Material, results

WIDE = 1e-10  # of float64, whose truth has no more digits than what is tested
WAITING = {  # operators that make the CPU wait for the GPU, and what for
    "contingency_table": "labels out of range are an error",
    "silhouette_coefficients": "labels out of range are an error",
    "center_distances": "labels out of range are an error",
    "cluster_dispersion": "labels out of range are an error",
    "gmm_responsibilities": "covariances that are not positive are an error",
    "gmm_log_density": "covariances that are not positive are an error",
    "gmm_step": "covariances that are not positive are an error",
    "propagate": "a matrix that is no CSR is an error; a prepared one is not looked at again",
    "laplacian_loss": "edges between other nodes are an error; prepared ones are not looked at again",
    "heat_weights": "edges between other nodes are an error; prepared ones are not looked at again",
    "kmeans_plusplus": "draws are made on the CPU",
    "knn": "queries in doubt are searched anew; the scale of the numbers",
    "radius_neighbors": "the number of pairs",
    "radius_counts": "the number of pairs",
    "density_clusters": "the number of pairs",
    "sinkhorn_assign_features": "torch by chunks: whether a column underflows",
    "optimal_transport_labels": "torch by chunks: whether a column underflows, and whether to stop",
    "optimal_transport_loss": "torch by chunks: whether a column underflows",
}


def check(name, size, dtype, device, backend, seeds=2):
    """Values and gradients of ``backend`` are no worse than those of plain torch in the same dtype."""
    values, gradients = [], []
    for seed in range(seeds):
        working = torch.float64 if dtype == torch.float64 else torch.float32
        found = results(name, Material(size, dtype, device, seed), backend=backend)
        plain = results(name, Material(size, dtype, device, seed, computed_in=working), backend="reference")
        truth = results(name, Material(size, dtype, device, seed, computed_in=torch.float64), backend="reference")
        values.append(list(zip(found[0], plain[0], truth[0], strict=True)))
        gradients.append(list(zip(found[1], plain[1], truth[1], strict=True)))
    for factor, draws in ((2, values), (3, gradients)):
        for place, cases in enumerate(zip(*draws)):
            compare(cases, factor, dtype, f"{name}: {'value' if factor == 2 else 'gradient'} {place}")


def compare(cases, factor, dtype, what):
    """One result of several draws: (found, plain torch, truth)."""
    if not cases[0][0].is_floating_point():
        assert all(torch.equal(found.long(), truth.long()) for found, _, truth in cases), f"{what} differs"
        return
    cases = [case for case in (finite(what, *case) for case in cases) if case[2].numel()]
    if all(bool((truth == 0).all()) for *_, truth in cases):
        assert all(bool((found.abs() < 1e-6).all()) for found, *_ in cases), f"{what} is not zero"
    elif dtype == torch.float64:
        error = max(relative_error(found, truth) for found, _, truth in cases)
        assert error < WIDE, f"{what}: error {error:.1e}"
    else:
        rounded = torch.float32 if cases[0][0].dtype in (torch.float32, torch.float64) else dtype
        in_dtype = [(found, plain.to(found.dtype), truth) for found, plain, truth in cases]
        assert_not_worse_than_torch(in_dtype, factor=factor, dtype=rounded, name=what)


def finite(what, found, plain, truth):
    """A case without the entries that are infinite or NaN, in the result and in the truth alike."""
    assert torch.equal(found.isfinite(), truth.isfinite()), f"{what} is finite elsewhere"
    assert torch.equal(found.isnan(), truth.isnan()), f"{what} is NaN elsewhere"
    keep = truth.isfinite()
    return found[keep], plain[keep], truth[keep]


def same(a, b):
    """Whether two answers of :func:`results` have the same bits."""
    return all(torch.equal(x.nan_to_num(), y.nan_to_num()) for x, y in zip(a[0] + a[1], b[0] + b[1], strict=True))
