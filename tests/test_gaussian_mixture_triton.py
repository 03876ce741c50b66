"""The GPU kernels of the Gaussian mixture room: run by Triton's interpreter, built for four chips, run on a GPU.

The tests of values stand in ``gaussian_mixture_triton_cases.py``, which runs in a process of its own: kernels take
up the interpreter when they are imported.
"""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from fastdc.kernels._testing import SHARED_BYTES, TARGETS, cross_compile
from fastdc.kernels._triton import ALL_REGISTERS, Chip, launch
from fastdc.kernels.gaussian_mixture import triton_tiles, triton_vade_tiles
from fastdc.kernels.gaussian_mixture.triton_vade import launch_of

CASES = str(Path(__file__).with_name("gaussian_mixture_triton_cases.py"))
PYTEST = ("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", CASES)
CAPABILITY = {"sm_80": 80, "sm_90": 90, "sm_100": 100, "gfx942": 0}
KERNELS = [
    (triton_tiles._gmm_rows_kernel, {}),
    (triton_tiles._gmm_responsibilities_kernel, {}),
    (triton_tiles._gmm_moments_kernel, {}),
    (triton_vade_tiles._vade_rows_kernel, {}),
    (triton_vade_tiles._vade_gradients_kernel, {"DETACHED": False}),
    (triton_vade_tiles._vade_components_kernel, {"DETACHED": False}),
]
VARIANTS = [
    (triton_vade_tiles._vade_gradients_kernel, {"DETACHED": True}),
    (triton_vade_tiles._vade_components_kernel, {"DETACHED": True}),
]
WIDE = ("counts_ptr", "sums_ptr", "squares_ptr", "loss_ptr", "mass_ptr", "first_ptr", "second_ptr")
ROWS = ("x_ptr", "z_ptr", "u_ptr", "v_ptr")


def test_interpreted(interpreted):
    assert "passed" in interpreted(PYTEST)


@pytest.mark.gpu
def test_on_the_gpu():
    done = subprocess.run([sys.executable, *PYTEST], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def build(kernel, constants, chip, dtype="fp32", rows="fp32", aligned=True):
    """One kernel as a call with row-major rows would build it."""
    itemsize, described = 8 if dtype == "fp64" else 4, Chip(100, CAPABILITY[chip])
    is_vade = "z_ptr" in kernel.arg_names
    choice = launch_of(100, itemsize, described) if is_vade else launch(100, "ieee", itemsize, described)
    types = {argument: f"*{dtype}" if argument.endswith("_ptr") else "i32" for argument in kernel.arg_names}
    types |= dict.fromkeys(WIDE, "*fp64") | dict.fromkeys(ROWS, f"*{rows}") | {"labels_ptr": "*i64"}
    fixed = {"BLOCK_N": choice.block_n, "BLOCK_K": choice.block_k, **constants}
    if aligned:
        fixed |= {f"stride_{name}": 1 for name in ("xd", "md", "pd", "zd", "ud", "vd")}
    fixed = {argument: value for argument, value in fixed.items() if argument in kernel.arg_names}
    multiples = [argument for argument in kernel.arg_names if argument.endswith("_ptr")] if aligned else []
    options = {"num_warps": choice.num_warps, "num_stages": choice.num_stages, **ALL_REGISTERS}
    return cross_compile(kernel, types, fixed, chip, aligned=multiples, **options)


def assert_fits(compiled, chip):
    assert compiled.spills == 0
    assert compiled.shared_bytes <= SHARED_BYTES[chip]
    assert not compiled.uses_matrix_units


@pytest.mark.parametrize("chip", TARGETS)
def test_compiles_for_every_chip_without_spills(chip):
    for kernel, constants in KERNELS:
        assert_fits(build(kernel, constants, chip), chip)


@pytest.mark.slow
@pytest.mark.parametrize("chip", TARGETS)
@pytest.mark.parametrize(
    "options", [{}, {"aligned": False}, {"dtype": "fp64", "rows": "fp64"}, {"rows": "fp16"}, {"rows": "bf16"}], ids=str
)
def test_every_kind_of_call_compiles_without_spills(chip, options):
    for kernel, constants in (*KERNELS, *VARIANTS):
        assert_fits(build(kernel, constants, chip, **options), chip)
