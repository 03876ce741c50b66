"""The GPU kernels of the Student t room: run by Triton's interpreter, built for four chips, and run on a GPU.

The tests of values stand in ``student_t_triton_cases.py``, which runs in a process of its own: kernels take up the
interpreter when they are imported.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from fastdc.kernels._testing import SHARED_BYTES, TARGETS, cross_compile
from fastdc.kernels._triton import ALL_REGISTERS, PARTIAL_BYTES, Chip, launch, product_precision, row_splits
from fastdc.kernels.student_t import triton_tiles as tiles

CASES = str(Path(__file__).with_name("student_t_triton_cases.py"))
PYTEST = ("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", CASES)
CAPABILITIES = {"sm_80": 80, "sm_90": 90, "sm_100": 100, "gfx942": 0}
SOURCES = {"own": tiles.OWN, "frozen": tiles.FROZEN, "given": tiles.GIVEN, "cotangent": tiles.COTANGENT}
MODES = {
    "plain": tiles.PLAIN,
    "gain": tiles.GAIN,
    "expected": tiles.EXPECTED,
    "statistics": tiles.STATISTICS,
}
GENERAL = (2.5, 1.5)  # alpha and power with logarithms; (1, 2) has none
SMALL, MIDDLE, LARGE = (10, 10), (100, 64), (1000, 128)  # n_clusters, n_features


def test_interpreted(interpreted):
    assert "passed" in interpreted(PYTEST)


@pytest.mark.gpu
def test_on_the_gpu():
    done = subprocess.run([sys.executable, *PYTEST], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def build(name, chip, size, precision, constants, dtype="fp32", point_dtype="fp32", aligned=True):
    """One kernel with the launch choices of a size, as a call with row-major points would build it."""
    kernel = getattr(tiles, f"_student_t_{name}_kernel")
    working = torch.float64 if dtype == "fp64" else torch.float32
    precision = product_precision(precision, size[1], working)
    choice = launch(size[0], precision, working.itemsize, Chip(132, CAPABILITIES[chip]))
    types = {argument: f"*{dtype}" if argument.endswith("_ptr") else "i32" for argument in kernel.arg_names}
    types |= {f"{matrix}_ptr": f"*{point_dtype}" for matrix in ("x", "c", "t", "tc", "g")}
    types |= {"labels_ptr": "*i64", "loss_ptr": "*fp64"}
    if name == "frequency":
        types["partial_ptr"] = "*fp64"
    fixed = {"PRECISION": precision, "T_PRECISION": precision, "NEED_X": True}
    fixed |= {"BLOCK_N": choice.block_n, "BLOCK_K": choice.block_k, "BLOCK_D": choice.block_d}
    fixed |= constants
    multiples = ()
    if aligned:
        ones = ("stride_xd", "stride_cd", "stride_td", "stride_tcd", "stride_gk")
        fixed |= dict.fromkeys(ones, 1)
        multiples = [a for a in types if a.endswith("_ptr")]
        if size[1] % 16 == 0:
            multiples += ["D", "DT", "stride_xn", "stride_ck", "stride_tn", "stride_tk"]
    fixed = {argument: value for argument, value in fixed.items() if argument in kernel.arg_names}
    options = {"num_warps": choice.num_warps, "num_stages": choice.num_stages, **ALL_REGISTERS}
    return cross_compile(kernel, types, fixed, chip, aligned=multiples, **options)


def constants(exponents=GENERAL, **more):
    return {"ALPHA": exponents[0], "POWER": exponents[1], **{k: v.value for k, v in more.items()}}


def default_precision(chip):
    return "bf16x6" if chip == "gfx942" else "tf32x3"


def assert_fits(compiled, chip):
    assert compiled.spills == 0
    assert compiled.shared_bytes <= SHARED_BYTES[chip]


HARDEST = [
    ("mass", constants(MODE=tiles.STATISTICS)),
    ("assign", constants()),
    ("frequency", constants()),
    ("rows", constants(SOURCE=tiles.FROZEN)),
    ("centers", constants(SOURCE=tiles.FROZEN)),
]
EVERY = [
    *(("mass", constants(e, MODE=mode)) for mode in MODES.values() for e in (GENERAL, (1.0, 2.0))),
    *(("assign", constants(e)) for e in (GENERAL, (1.0, 2.0))),
    *(("frequency", constants(e)) for e in (GENERAL, (1.0, 2.0))),
    *(
        (name, constants(e, SOURCE=source))
        for name in ("rows", "centers")
        for source in SOURCES.values()
        for e in (GENERAL, (1.0, 2.0))
    ),
]


@pytest.mark.parametrize("chip", TARGETS)
@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["differences", "products"])
def test_compiles_for_every_chip_without_spills(chip, size):
    for name, fixed in HARDEST:
        compiled = build(name, chip, size, default_precision(chip), fixed)
        assert_fits(compiled, chip)
        assert compiled.uses_matrix_units == (size is LARGE)


@pytest.mark.parametrize("chip", TARGETS)
def test_target_distribution_compiles(chip):
    kernel = tiles._target_distribution_kernel
    types = {"q_ptr": "*fp32", "gain_ptr": "*fp32", "p_ptr": "*fp32"}
    types = {argument: types.get(argument, "i32") for argument in kernel.arg_names}
    fixed = {"POWER": 1.5, "BLOCK_N": 16, "BLOCK_K": 128}
    assert_fits(cross_compile(kernel, types, fixed, chip, num_warps=4), chip)


@pytest.mark.slow
@pytest.mark.parametrize("chip", TARGETS)
@pytest.mark.parametrize("size", [SMALL, MIDDLE], ids=["differences", "products"])
def test_every_kernel_compiles_without_spills(chip, size):
    for name, fixed in EVERY:
        assert_fits(build(name, chip, size, default_precision(chip), fixed), chip)


@pytest.mark.slow
@pytest.mark.parametrize("chip", TARGETS)
@pytest.mark.parametrize(
    "options",
    [
        {"size": (20, 40)},
        {"precision": "ieee"},
        {"precision": "bf16"},
        {"aligned": False},
        {"dtype": "fp64", "point_dtype": "fp64"},
        {"point_dtype": "fp16"},
        {"point_dtype": "bf16"},
    ],
    ids=str,
)
def test_every_kind_of_call_compiles_without_spills(chip, options):
    options = {"size": MIDDLE, "precision": default_precision(chip), **options}
    for name, fixed in HARDEST:
        assert_fits(build(name, chip, constants=fixed, **options), chip)


def test_launch_choices():
    hopper = Chip(132, 90)
    assert product_precision("tf32x3", 16, torch.float32) == "ieee"
    assert product_precision("tf32x3", 17, torch.float32) == "tf32x3"
    assert product_precision("tf32x3", 64, torch.float64) == "ieee"
    assert launch(10, "tf32x3", 4, hopper).block_k == 16
    for n, columns, size in [(1, 1, 40), (10**6, 1, 400), (2 * 10**6, 313, 4 * 20_000 * 32), (10**8, 16, 10**9)]:
        n_splits, rows = row_splits(n, columns, size, 64, hopper)
        assert rows % 64 == 0
        assert (n_splits - 1) * rows < n <= n_splits * rows
        assert n_splits == 1 or n_splits * size <= PARTIAL_BYTES
