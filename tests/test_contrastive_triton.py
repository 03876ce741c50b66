"""The GPU kernels of the contrastive room: run by Triton's interpreter, built for four chips, and run on a GPU.

The tests of values stand in ``contrastive_triton_cases.py``, which runs in a process of its own: kernels take up the
interpreter when they are imported.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

import triton.language as tl

from fastdc.kernels._testing import SHARED_BYTES, TARGETS, cross_compile
from fastdc.kernels._triton import ALL_REGISTERS, Chip, launch, product_precision
from fastdc.kernels.contrastive import triton_tiles as tiles

CASES = str(Path(__file__).with_name("contrastive_triton_cases.py"))
PYTEST = ("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", CASES)
CAPABILITIES = {"sm_80": 80, "sm_90": 90, "sm_100": 100, "gfx942": 0}
KERNELS = {"sums": tiles._contrast_sums_kernel, "gradient": tiles._contrast_gradient_kernel}
EVERYTHING = {"HAS_POSITIVES": True, "HAS_SELF": True, "TRANSPOSED": False}


def test_interpreted(interpreted):
    assert "passed" in interpreted(PYTEST)


@pytest.mark.gpu
def test_on_the_gpu():
    done = subprocess.run([sys.executable, *PYTEST], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def build(name, chip, n_features=128, dtype="fp32", precision=None, aligned=True, **constants):
    """One kernel as a call with many row-major keys would build it."""
    kernel = KERNELS[name]
    working = torch.float64 if dtype == "fp64" else torch.float32
    precision = precision or ("bf16x6" if chip == "gfx942" else "tf32x3")
    precision = product_precision(precision, n_features, working)
    choice = launch(16384, precision, working.itemsize, Chip(132, CAPABILITIES[chip]))
    types = {argument: f"*{dtype}" if argument.endswith("_ptr") else "i32" for argument in kernel.arg_names}
    types |= {"positives_ptr": "*i64", "shift_ptr": "*fp64", "sum_ptr": "*fp64"}
    fixed = EVERYTHING | {"ACC": tl.float64 if dtype == "fp64" else tl.float32, "PRECISION": precision} | constants
    fixed |= {"BLOCK_N": choice.block_n, "BLOCK_M": choice.block_k, "BLOCK_D": choice.block_d}
    multiples = ()
    if aligned:
        fixed |= {"stride_xd": 1, "stride_yd": 1}
        multiples = [a for a in types if a.endswith("_ptr")]
        if n_features % 16 == 0:
            multiples += ["D", "stride_xn", "stride_ym"]
    options = {"num_warps": choice.num_warps, "num_stages": choice.num_stages, **ALL_REGISTERS}
    return cross_compile(kernel, types, fixed, chip, aligned=multiples, **options)


def assert_fits(compiled, chip, matrix_units):
    assert compiled.spills == 0
    assert compiled.shared_bytes <= SHARED_BYTES[chip]
    assert compiled.uses_matrix_units == matrix_units


@pytest.mark.parametrize("chip", TARGETS)
@pytest.mark.parametrize("name", KERNELS)
def test_compiles_for_every_chip_without_spills(name, chip):
    assert_fits(build(name, chip), chip, matrix_units=True)


@pytest.mark.slow
@pytest.mark.parametrize("chip", TARGETS)
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(
    "options",
    [
        {"n_features": 10},
        {"n_features": 10, "TRANSPOSED": True},
        {"TRANSPOSED": True},
        {"HAS_POSITIVES": False},
        {"HAS_SELF": False, "aligned": False},
        {"dtype": "fp64"},
        {"precision": "bf16"},
    ],
    ids=str,
)
def test_every_kind_of_call_compiles_without_spills(name, chip, options):
    by_features = options.get("n_features") == 10 or options.get("dtype") == "fp64"
    assert_fits(build(name, chip, **options), chip, matrix_units=not by_features)
