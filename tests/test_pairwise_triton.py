"""The GPU kernels of the pairwise room: run by Triton's interpreter, built for four chips, and run on a GPU.

The tests of values stand in ``pairwise_triton_cases.py``, which runs in a process of its own: kernels take up the
interpreter when they are imported.
"""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

import triton.language as tl

from fastdc.kernels._testing import SHARED_BYTES, TARGETS, cross_compile
from fastdc.kernels._triton import ALL_REGISTERS, Chip, launch
from fastdc.kernels.pairwise import triton_loss_tiles, triton_tiles

CASES = str(Path(__file__).with_name("pairwise_triton_cases.py"))
PYTEST = ("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", CASES)
KERNELS = {
    "silhouette": triton_tiles,
    "hardest_pairs": triton_tiles,
    "center_distances": triton_tiles,
    "pairwise_bce": triton_loss_tiles,
    "neighbor_rows": triton_loss_tiles,
    "neighbor_gradient": triton_loss_tiles,
}
CHIPS = {"sm_80": Chip(108, 80), "sm_90": Chip(132, 90), "sm_100": Chip(148, 100), "gfx942": Chip(304, 0)}
INT64 = ("labels_ptr", "offsets_ptr", "positive_ptr", "negative_ptr")


def test_interpreted(interpreted):
    assert "passed" in interpreted(PYTEST)


@pytest.mark.gpu
def test_on_the_gpu():
    done = subprocess.run([sys.executable, *PYTEST], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def build(name, chip, precision=None, x="fp32", aligned=True):
    """One kernel as a call with row-major points would build it."""
    kernel = getattr(KERNELS[name], f"_{name}_kernel")
    wide = "fp64" if x == "fp64" else "fp32"
    precision = precision or ("bf16x6" if chip == "gfx942" else "tf32x3")
    types = {argument: f"*{wide}" if argument.endswith("_ptr") else "i32" for argument in kernel.arg_names}
    types |= {argument: "*i64" for argument in INT64 if argument in types}
    types |= {"x_ptr": f"*{wide if name == 'pairwise_bce' else x}", "totals_ptr": "*fp64"}
    choice = launch(4096, precision, 8 if wide == "fp64" else 4, CHIPS[chip])
    fixed = {"ACC": tl.float64 if wide == "fp64" else tl.float32, "PRECISION": precision}
    fixed |= {"BLOCK_N": choice.block_n, "BLOCK_K": choice.block_k, "BLOCK_D": choice.block_d}
    fixed |= {flag: True for flag in ("HAS_LABELS", "NEED_GRADIENT") if flag in kernel.arg_names}
    multiples = ()
    if aligned:
        fixed |= {stride: 1 for stride in ("stride_xd", "stride_cd") if stride in types}
        multiples = [a for a in types if a.endswith("_ptr")] + [s for s in ("stride_xn", "stride_ck") if s in types]
    return cross_compile(
        kernel,
        types,
        fixed,
        chip,
        aligned=multiples,
        num_warps=choice.num_warps,
        num_stages=choice.num_stages,
        **ALL_REGISTERS,
    )


def assert_fits(compiled, chip):
    assert compiled.spills == 0
    assert compiled.shared_bytes <= SHARED_BYTES[chip]


@pytest.mark.parametrize("chip", TARGETS)
@pytest.mark.parametrize("name", KERNELS)
def test_compiles_for_every_chip_without_spills(name, chip):
    compiled = build(name, chip)
    assert_fits(compiled, chip)
    assert compiled.uses_matrix_units


@pytest.mark.slow
@pytest.mark.parametrize("chip", TARGETS)
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(
    "options",
    [{"precision": "ieee"}, {"aligned": False}, {"precision": "ieee", "x": "fp64"}, {"x": "fp16"}, {"x": "bf16"}],
    ids=str,
)
def test_every_kind_of_call_compiles_without_spills(name, chip, options):
    assert_fits(build(name, chip, **options), chip)
