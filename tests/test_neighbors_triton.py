"""The GPU kernels of the neighbors room: run by Triton's interpreter, built for four chips, and run on a GPU.

The tests of values stand in ``neighbors_triton_cases.py``, which runs in a process of its own: kernels take up
the interpreter when they are imported.
"""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from fastdc.kernels._testing import SHARED_BYTES, TARGETS, cross_compile
from fastdc.kernels._triton import ALL_REGISTERS
from fastdc.kernels.neighbors import triton_tiles as tiles
from fastdc.kernels.neighbors.triton_kernel import MOST_PLACES, Launch, launch, launch_within

CASES = str(Path(__file__).with_name("neighbors_triton_cases.py"))
PYTEST = ("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", CASES)
PRECISIONS = [("fp32", p) for p in ("ieee", "tf32x3", "bf16x6", "tf32", "bf16")] + [("fp64", "ieee")]
ITEMSIZE = {"fp32": 4, "fp64": 8}
SIZES = {"M": "i32", "N": "i32", "D": "i32"}


def test_interpreted(interpreted):
    assert "passed" in interpreted(PYTEST)


@pytest.mark.gpu
def test_on_the_gpu():
    done = subprocess.run([sys.executable, *PYTEST], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def build(kernel, chip, types, fixed, choice):
    """One kernel as a call would build it."""
    fixed = {**fixed, "BLOCK_M": choice.block_m, "BLOCK_N": choice.block_n, "BLOCK_D": choice.block_d}
    pointers = [name for name in types if name.endswith("_ptr")]
    options = {"num_warps": choice.num_warps, "num_stages": 1, **ALL_REGISTERS}
    compiled = cross_compile(kernel, {**SIZES, **types}, fixed, chip, aligned=pointers, **options)
    assert compiled.spills == 0
    assert compiled.shared_bytes <= SHARED_BYTES[chip]
    return compiled


def products(precision):
    return {"PRECISION": "tf32" if precision == "bf16" else precision, "IN_BF16": precision == "bf16"}


def build_candidates(chip, dtype, precision, places, metric=None, has_floor=False):
    work = "fp64" if metric is not None else dtype
    choice = launch(ITEMSIZE[work], products(precision)["PRECISION"])
    names = ("q_ptr", "x_ptr", "offsets_ptr")
    types = dict.fromkeys(names, f"*{dtype}") | dict.fromkeys(("floor_scores_ptr", "scores_ptr"), f"*{work}")
    types |= dict.fromkeys(("own_ptr", "floor_indices_ptr", "indices_ptr"), "*i64")
    fixed = {"METRIC": metric or 0, "EXACT": metric is not None, "HAS_FLOOR": has_floor, "PLACES": places}
    return build(tiles._candidates_kernel, chip, types, fixed | products(precision), choice)


def is_built(chip, precision):
    """Triton has no tf32x3 for AMD's chips; the library never asks for it there."""
    return not (chip == "gfx942" and precision == "tf32x3")


@pytest.mark.parametrize(
    ("chip", "dtype", "precision"),
    [(c, *p) for c, p in itertools.product(TARGETS, PRECISIONS) if is_built(c, p[1])],
)
def test_candidates_fit_every_chip(chip, dtype, precision):
    compiled = build_candidates(chip, dtype, precision, 16)
    assert compiled.uses_matrix_units or precision == "ieee"


@pytest.mark.parametrize("chip", TARGETS)
def test_the_search_by_differences_fits_every_chip(chip):
    build_candidates(chip, "fp32", "ieee", 16, metric=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("chip", "dtype", "precision"),
    [(c, *p) for c, p in itertools.product(TARGETS, PRECISIONS) if is_built(c, p[1])],
)
def test_many_places_fit_every_chip(chip, dtype, precision):
    most = MOST_PLACES[ITEMSIZE[dtype]]
    for places, has_floor in {(32, False), (most, False), (most, True)}:
        build_candidates(chip, dtype, precision, places, has_floor=has_floor)


@pytest.mark.slow
@pytest.mark.parametrize("chip", TARGETS)
@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
@pytest.mark.parametrize("metric", [0, 1, 2])
def test_every_search_by_differences_fits_every_chip(chip, dtype, metric):
    for places, has_floor in ((16, False), (32, False), (32, True)):
        build_candidates(chip, dtype, "ieee", places, metric=metric, has_floor=has_floor)


@pytest.mark.parametrize("chip", TARGETS)
@pytest.mark.parametrize("fill", [False, True])
@pytest.mark.parametrize(("dtype", "precision"), [("fp32", "bf16x6"), ("fp64", "ieee")])
def test_within_fits_every_chip(chip, fill, dtype, precision):
    names = ("q_ptr", "x_ptr", "offsets_ptr", "bounds_ptr")
    types = dict.fromkeys(names, f"*{dtype}") | dict.fromkeys(("own_ptr", "starts_ptr", "counts_ptr"), "*i64")
    types["indices_ptr"] = "*i64"
    choice = launch_within(ITEMSIZE[dtype])
    build(tiles._within_kernel, chip, types, {"FILL": fill, **products(precision)}, choice)


def test_launch_choices():
    assert launch(4, "tf32x3") == Launch(64, 32, 16, 4)
    assert launch(4, "ieee") == Launch(64, 16, 16, 4)
    assert launch(8, "ieee") == Launch(16, 16, 16, 4)
    assert (launch_within(4), launch_within(8)) == (Launch(32, 32, 16, 4), Launch(16, 32, 16, 4))
