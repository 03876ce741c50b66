"""The GPU kernels of the kmeans room without a GPU: built for each chip, and run by Triton's interpreter."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from fastdc.kernels._testing import SHARED_BYTES, TARGETS, cross_compile
from fastdc.kernels._triton import ALL_REGISTERS

CASES = str(Path(__file__).with_name("kmeans_triton_cases.py"))
PYTEST = ("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", CASES)
PRECISIONS = {"fp32": ["ieee", "tf32x3", "bf16x6", "tf32", "bf16"], "fp64": ["ieee"]}
DTYPES = [("fp32", "fp32"), ("bf16", "fp32"), ("fp64", "fp64")]  # of the rows, and computed in
ITEMSIZE = {"fp32": 4, "fp64": 8}
SIZES = {"N": "i32", "K": "i32", "D": "i32", "stride_xn": "i32"}


def build(kernel, chip, types, constants, **options):
    compiled = cross_compile(kernel, {**SIZES, **types}, {"stride_xd": 1, **constants}, chip, **options)
    assert compiled.spills == 0
    assert compiled.shared_bytes <= SHARED_BYTES[chip]
    return compiled


def nearest_cases():
    for chip, (rows, work), d in itertools.product(TARGETS, DTYPES, (16, 128)):
        for precision in PRECISIONS[work]:
            if not (chip == "gfx942" and precision == "tf32x3"):
                yield chip, rows, work, precision, d


@pytest.mark.parametrize(("chip", "rows", "work", "precision", "d"), list(nearest_cases()))
def test_nearest_center_fits_every_chip(chip, rows, work, precision, d):
    from fastdc.kernels.kmeans import triton_kernel, triton_tiles

    choice = triton_kernel.launch(d, ITEMSIZE[work], precision, SHARED_BYTES[chip])
    types = {name: f"*{work}" for name in ("centers_ptr", "shift_ptr", "factors_ptr", "offsets_ptr", "sq_dists_ptr")}
    types |= {"x_ptr": f"*{rows}", "labels_ptr": "*i64", "unsure_ptr": "*i8", "error": "fp32", "tiny": "fp32"}
    constants = {
        "BLOCK_N": choice.block_n,
        "BLOCK_K": choice.block_k,
        "BLOCK_D": choice.block_d,
        "PRECISION": "ieee" if precision == "bf16" else precision,
        "IN_BF16": precision == "bf16",
    }
    compiled = build(
        triton_tiles._nearest_center_kernel,
        chip,
        types,
        constants,
        num_warps=choice.num_warps,
        num_stages=choice.num_stages,
        **ALL_REGISTERS,
    )
    assert compiled.uses_matrix_units or precision == "ieee"


@pytest.mark.parametrize("chip", TARGETS)
@pytest.mark.parametrize(("rows", "work"), DTYPES)
def test_the_other_kernels_fit_every_chip(chip, rows, work):
    from fastdc.kernels.kmeans import triton_tiles

    x, own, wide, long = f"*{rows}", f"*{work}", "*fp64", "*i64"
    build(
        triton_tiles._decide_kernel,
        chip,
        {"x_ptr": x, "centers_ptr": own, "labels_ptr": long, "sq_dists_ptr": own, "unsure_ptr": "*i8"},
        {"BLOCK_N": 16, "BLOCK_K": 32},
    )
    sums = {"sums_ptr": wide, "counts_ptr": wide}
    build(
        triton_tiles._piece_sums_kernel,
        chip,
        {"x_ptr": x, "weights_ptr": own, "order_ptr": long, "starts_ptr": long, **sums},
        {"HAS_WEIGHT": True, "BLOCK_N": 32, "BLOCK_D": 64},
    )
    cross_compile_sums = {"pieces_ptr": wide, "piece_counts_ptr": wide, "bounds_ptr": long, **sums, "D": "i32"}
    compiled = cross_compile(
        triton_tiles._cluster_sums_kernel, cross_compile_sums, {"BLOCK_P": 16, "BLOCK_D": 64}, chip
    )
    assert compiled.spills == 0
    build(
        triton_tiles._seeding_kernel,
        chip,
        {
            "x_ptr": x,
            "weights_ptr": wide,
            "centers_ptr": own,
            "closest_ptr": own,
            "masses_ptr": wide,
            "first_block": "i32",
            "n_candidates": "i32",
        },
        {"WINNERS": 1, "HAS_WEIGHT": True, "BLOCK_N": 128, "BLOCK_D": 128 // ITEMSIZE[work]},
    )


def test_launch_is_a_function_of_numbers():
    from fastdc.kernels.kmeans.triton_kernel import launch

    assert launch(64, 4, "tf32x3", 232448) == launch(64, 4, "tf32x3", 232448)
    assert launch(2, 4, "tf32x3", 232448).block_d == 16  # the least that a product takes
    assert launch(64, 4, "tf32x3", 166912).block_d == 16
    assert launch(64, 4, "tf32", 65536).num_stages == 1


def test_interpreted(interpreted):
    assert "passed" in interpreted(PYTEST)


@pytest.mark.gpu
def test_on_the_gpu():
    done = subprocess.run([sys.executable, *PYTEST], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
