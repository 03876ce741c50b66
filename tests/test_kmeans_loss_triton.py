"""The GPU kernels of the k-means loss without a GPU: built for each chip, and run by Triton's interpreter."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from fastdc.kernels._testing import SHARED_BYTES, TARGETS, cross_compile
from fastdc.kernels._triton import ALL_REGISTERS, Chip, product_precision
from fastdc.kernels.kmeans import triton_loss_tiles as tiles
from fastdc.kernels.kmeans.triton_loss import soft_launch

CASES = str(Path(__file__).with_name("kmeans_loss_triton_cases.py"))
PYTEST = ("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", CASES)
CAPABILITIES = {"sm_80": 80, "sm_90": 90, "sm_100": 100, "gfx942": 0}
KERNELS = ("mass", "rows", "centers")
SMALL, LARGE = (10, 10), (1000, 128)  # n_clusters, n_features


def test_interpreted(interpreted):
    assert "passed" in interpreted(PYTEST)


@pytest.mark.gpu
def test_on_the_gpu():
    done = subprocess.run([sys.executable, *PYTEST], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def build(name, chip, size, dtype="fp32", point_dtype="fp32", precision=None):
    """One kernel with the launch choices of a size, as a call with row-major points would build it."""
    kernel = getattr(tiles, f"_kmeans_soft_{name}_kernel")
    working = torch.float64 if dtype == "fp64" else torch.float32
    precision = product_precision(precision or ("bf16x6" if chip == "gfx942" else "tf32x3"), size[1], working)
    choice = soft_launch(size[0], precision, working.itemsize, Chip(132, CAPABILITIES[chip]))
    types = {argument: f"*{dtype}" if argument.endswith("_ptr") else "i32" for argument in kernel.arg_names}
    types |= {"x_ptr": f"*{point_dtype}", "c_ptr": f"*{point_dtype}"}
    fixed = {"PRECISION": precision, "stride_xd": 1, "stride_cd": 1}
    fixed |= {"BLOCK_N": choice.block_n, "BLOCK_K": choice.block_k, "BLOCK_D": choice.block_d}
    aligned = [a for a in types if a.endswith("_ptr")]
    if size[1] % 16 == 0:
        aligned += ["D", "stride_xn", "stride_ck"]
    options = {"num_warps": choice.num_warps, "num_stages": choice.num_stages, **ALL_REGISTERS}
    compiled = cross_compile(kernel, types, fixed, chip, aligned=aligned, **options)
    assert compiled.spills == 0
    assert compiled.shared_bytes <= SHARED_BYTES[chip]
    return compiled


@pytest.mark.parametrize("chip", TARGETS)
@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["differences", "products"])
def test_compiles_for_every_chip_without_spills(chip, size):
    for name in KERNELS:
        assert build(name, chip, size).uses_matrix_units == (size is LARGE)


@pytest.mark.slow
@pytest.mark.parametrize("chip", TARGETS)
@pytest.mark.parametrize(
    "options", [{"dtype": "fp64", "point_dtype": "fp64"}, {"point_dtype": "bf16"}, {"precision": "bf16"}], ids=str
)
def test_every_kind_of_call_compiles_without_spills(chip, options):
    for name in KERNELS:
        build(name, chip, LARGE, **options)
