"""How a call of ``fastdc.kernels._calls`` is held against float64, on any device."""

import torch

from fastdc.kernels._accuracy import assert_not_worse_than_torch, relative_error
from fastdc.kernels._calls import Material, results

WIDE = 1e-10  # of float64, whose truth has no more digits than what is tested


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
