"""The GPU kernels of the mutual information room: run by Triton's interpreter, built for four chips, run on a GPU.

The tests of values stand in ``mutual_information_triton_cases.py``, which runs in a process of its own: kernels
take up the interpreter when they are imported.
"""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

import triton.language as tl

from fastdc.kernels._testing import SHARED_BYTES, TARGETS, cross_compile
from fastdc.kernels._triton import tile_of
from fastdc.kernels.mutual_information import triton_tiles as tiles

CASES = str(Path(__file__).with_name("mutual_information_triton_cases.py"))
PYTEST = ("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", CASES)
FROM = ({"FROM_LOGITS": True}, {"FROM_LOGITS": False})
KERNELS = [
    *(
        (tiles._entropy_rows_kernel, {"WANT_ENTROPY": want, "ONE_TILE": one, **source})
        for source in FROM
        for want in (True, False)
        for one in (True, False)
    ),
    *((tiles._mass_kernel, source) for source in FROM),
    *((tiles._entropy_backward_kernel, source) for source in FROM),
    *((tiles._vat_kl_kernel, {"NEED_GRADIENT": need}) for need in (True, False)),
]
HARDEST = [KERNELS[0], KERNELS[-4], KERNELS[-2]]  # everything at once, each


def test_interpreted(interpreted):
    assert "passed" in interpreted(PYTEST)


@pytest.mark.gpu
def test_on_the_gpu():
    done = subprocess.run([sys.executable, *PYTEST], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def build(kernel, constants, chip, n_clusters, dtype="fp32", x_dtype="fp32", aligned=True):
    """One kernel with the launch choices of a size, as a call with row-major rows would build it."""
    tile = tile_of(n_clusters)
    types = {argument: f"*{dtype}" if argument.endswith("_ptr") else "i32" for argument in kernel.arg_names}
    types |= {"x_ptr": f"*{x_dtype}", "a_ptr": f"*{x_dtype}", "b_ptr": f"*{x_dtype}"}
    types |= {"partial_ptr": "*fp64", "loss_ptr": "*fp64"}
    working = tl.float64 if dtype == "fp64" else tl.float32
    fixed = {"ACC": working, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k, **constants}
    if aligned:
        fixed |= {"stride_xk": 1, "stride_ak": 1, "stride_bk": 1}
    fixed = {argument: value for argument, value in fixed.items() if argument in kernel.arg_names}
    multiples = [argument for argument in types if argument.endswith("_ptr")] if aligned else []
    return cross_compile(kernel, types, fixed, chip, aligned=multiples, num_warps=tile.num_warps)


def assert_fits(compiled, chip):
    assert compiled.spills == 0
    assert compiled.shared_bytes <= SHARED_BYTES[chip]


@pytest.mark.parametrize("chip", TARGETS)
@pytest.mark.parametrize("n_clusters", [10, 2000])
def test_compiles_for_every_chip_without_spills(chip, n_clusters):
    for kernel, constants in HARDEST:
        assert_fits(build(kernel, constants, chip, n_clusters), chip)


@pytest.mark.slow
@pytest.mark.parametrize("chip", TARGETS)
@pytest.mark.parametrize(
    "options",
    [{}, {"aligned": False}, {"dtype": "fp64", "x_dtype": "fp64"}, {"x_dtype": "fp16"}, {"x_dtype": "bf16"}],
    ids=str,
)
def test_every_kernel_compiles_without_spills(chip, options):
    for kernel, constants in KERNELS:
        for n_clusters in (10, 100, 2000):
            assert_fits(build(kernel, constants, chip, n_clusters, **options), chip)


def test_tiles():
    assert tile_of(1) == (32, 16, 8)
    assert tile_of(100) == (4, 128, 8)
    assert tile_of(100_000) == (1, 1024, 8)
