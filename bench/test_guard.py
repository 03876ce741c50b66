"""Guards for the CPU kernels, for a look at what a change does; the campaign is ``python -m bench``.

``python -m pytest bench/test_guard.py --benchmark-autosave`` records times, and with ``--benchmark-compare``
shows them beside the last. No time is asserted. The file is not among the default test paths.
"""

from __future__ import annotations

import pytest
import torch

from bench._harness import Bench, Call, all_benches, measure_errors

BENCHES = all_benches()
GUARDED = [
    ("dec_loss", {"n": 20_000, "k": 10, "d": 10}),
    ("dec_loss", {"n": 4_000, "k": 100, "d": 64}),
    ("student_t_assign", {"n": 20_000, "k": 10, "d": 10}),
    ("student_t_statistics", {"n": 20_000, "k": 10, "d": 10}),
]


def _call(bench: Bench, shape: dict[str, int]) -> Call:
    """The Numba provider on a checked input, compiled."""
    inputs = bench.inputs(**shape, dtype=torch.float32, device="cpu")
    call = Call(bench, bench.providers["numba"].make(), inputs)
    truth = bench.truth(inputs, bool(bench.gradients))
    errors = measure_errors(bench, call.results(bool(bench.gradients)), truth, inputs)
    assert max(errors.values()) <= bench.tolerances[torch.float32], errors
    return call


@pytest.mark.parametrize(
    ("op", "shape"), GUARDED, ids=["-".join([op, *map(str, shape.values())]) for op, shape in GUARDED]
)
def test_numba_kernel(op, shape, benchmark):
    call = _call(BENCHES[op], shape)
    benchmark.group = op
    benchmark(call.both if BENCHES[op].gradients else call.forward)
