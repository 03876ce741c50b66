"""GPU kernels without a GPU: every launch is built for the chips, and read; and the arithmetic of what they can do."""

import importlib
import itertools
import pkgutil

import pytest
import torch

pytest.importorskip("triton")

import fastdc.kernels
from bench import _gpu_code, _gpu_model, gpu_static
from bench._gpu_model import CASES, H200, MODELS, Case, Model, Occupancy, Work, as_built, bound, occupancy, roofline
from fastdc.kernels import OPS, _launches, _triton
from fastdc.kernels._calls import CALLS, WITHOUT_KERNELS, Size, op_of
from fastdc.kernels._launches import CHIPS, SAMPLES, launches, recorded
from fastdc.kernels._testing import TARGETS, assert_fits
from fastdc.kernels.sinkhorn import triton_tiles

ROOMS = sorted(set(OPS.values()))
LARGE = gpu_static.SIZES[0]
OF_MANY_CLUSTERS = [
    "student_t_assign", "student_t_statistics", "dec_loss", "kmeans_step", "kmeans_loss: soft", "center_distances",
    "gmm_step", "prototype_contrast", "sinkhorn_assign", "vat_kl",
]  # fmt: skip


def fits(call, chip, setting):
    """Builds the launches of a call; products of many features must be on matrix units."""
    for launch in dict.fromkeys(launches(call, chip, *setting)):
        compiled = assert_fits(launch, chip)
        precision = dict(launch.constants).get("PRECISION", "ieee")
        if precision != "ieee":
            assert compiled.uses_matrix_units, launch


@pytest.mark.parametrize("room", ROOMS)
def test_the_kernels_of_a_room_fit(room):
    """Each kernel once, on one chip, in float32; the other launches are in the slow test below."""
    first_of = {}
    for call in (name for name in CALLS if OPS[op_of(name)] == room):
        for launch in launches(call, "sm_90", LARGE):
            first_of.setdefault(launch.kernel, launch)
    for launch in first_of.values():
        compiled = assert_fits(launch, "sm_90")
        if dict(launch.constants).get("PRECISION", "ieee") != "ieee":
            assert compiled.uses_matrix_units


@pytest.mark.slow
@pytest.mark.parametrize("chip", TARGETS)
@pytest.mark.parametrize("call", CALLS)
def test_every_launch_fits(call, chip):
    for setting in gpu_static.settings(call, chip):
        fits(call, chip, setting)


def test_every_kernel_is_launched_by_some_call():
    written = {
        f"{module.__name__}.{name}"
        for info in pkgutil.walk_packages(fastdc.kernels.__path__, "fastdc.kernels.")
        if ".triton_" in info.name
        for module in [importlib.import_module(info.name)]
        for name, value in vars(module).items()
        if name.endswith("_kernel") and hasattr(value, "arg_names") and value.fn.__module__ == module.__name__
    }
    launched = {f"{launch.module}.{launch.kernel}" for call in CALLS for launch in launches(call, "sm_90", LARGE)}
    assert written == launched


def test_which_calls_have_no_kernel():
    assert {call for call in CALLS if not launches(call, "sm_90", Size(0, 20, 40))} == WITHOUT_KERNELS


@pytest.mark.parametrize("size", [Size(0, 1, 1), Size(0, 1, 4096), Size(0, 300, 1)], ids=str)
def test_the_smallest_and_widest_are_launched(size):
    for call, chip in itertools.product(CALLS.keys() - WITHOUT_KERNELS, ("sm_90", "gfx942")):
        assert launches(call, chip, size)


@pytest.mark.parametrize("call", OF_MANY_CLUSTERS)
def test_a_million_clusters_are_launched(call, monkeypatch):
    """No grid is wider than a GPU takes."""
    monkeypatch.setattr(_launches, "SAMPLES", 3)
    assert launches(call, "sm_90", Size(0, 1_000_000, 2))


def test_a_grid_that_is_too_wide_is_an_error():
    with recorded("sm_90"), pytest.raises(ValueError, match=r"_sinkhorn_assign_kernel wants .* programs, a GPU takes"):
        triton_tiles._sinkhorn_assign_kernel[(1, 65536)]()


def test_a_launch_is_described_as_triton_would_specialise_it():
    launch = next(one for one in launches("dec_loss", "sm_90", LARGE) if one.kernel == "_student_t_rows_kernel")
    types, constants = dict(launch.types), dict(launch.constants)
    assert (types["x_ptr"], types["losses_ptr" if "losses_ptr" in types else "loss_ptr"]) == ("*fp32", "*fp64")
    assert constants["stride_xd"] == 1
    assert constants["PRECISION"] == "tf32x3"
    assert {"x_ptr", "stride_xn", "D"} <= set(launch.aligned)
    assert types["N"] == "i32"
    assert "N" not in launch.aligned  # it is not specialised on
    assert dict(launch.options) == {"num_warps": 8, "num_stages": 1, "maxnreg": 255}
    strided = launches("dec_loss", "sm_90", Size(0, 20, 33), "bf16", strided=True)[0]
    assert dict(strided.types)["stride_xd"] == "i32"
    assert dict(strided.types)["x_ptr"] == "*bf16"
    assert "D" not in strided.aligned
    amd = launches("dec_loss", "gfx942", LARGE)[0]
    assert dict(amd.constants)["PRECISION"] == "bf16x6"


def test_recording_leaves_everything_as_it_was():
    before = _triton.INTERPRETER, torch.empty, torch.Tensor.new_empty
    with recorded("sm_80"):
        assert CHIPS["sm_80"] == _triton.INTERPRETER
        assert torch.empty(3).tolist() == [0, 0, 0]
    assert before == (_triton.INTERPRETER, torch.empty, torch.Tensor.new_empty)
    assert SAMPLES > 2 * 128  # rows beyond any tile


@pytest.mark.parametrize(
    ("chip", "registers", "num_warps", "shared_bytes", "expected"),
    [
        # 255 registers x 32 threads are 8160, in pieces of 256: 8192 a warp, 8 warps in 65536; 2 programs of 4
        ("sm_90", 255, 4, 0, Occupancy(2, 8, "registers")),
        # 128 x 32 = 4096 a warp: 16 warps
        ("sm_90", 128, 8, 16 << 10, Occupancy(2, 16, "registers")),
        # 129 x 32 = 4128, in pieces 4352: 3 warps in the 16384 of each quarter
        ("sm_80", 129, 8, 0, Occupancy(1, 8, "registers")),
        ("sm_80", 129, 1, 0, Occupancy(12, 12, "registers")),
        # 32 registers would let 64 warps in; 100 KB and 1 KB reserved twice in 228 KB
        ("sm_90", 32, 4, 100 << 10, Occupancy(2, 8, "shared memory")),
        ("sm_80", 32, 4, 100 << 10, Occupancy(1, 4, "shared memory")),
        ("sm_90", 32, 8, 0, Occupancy(8, 64, "registers")),
        ("sm_90", 16, 1, 0, Occupancy(32, 32, "programs")),
        ("sm_100", 255, 16, 0, Occupancy(0, 0, "registers")),
        # 512 registers a lane on each of 4 SIMDs: 2 wavefronts of 256 on each
        ("gfx942", 256, 4, 0, Occupancy(2, 8, "registers")),
        ("gfx942", 64, 8, 40 << 10, Occupancy(1, 8, "shared memory")),
    ],
)
def test_occupancy_by_hand(chip, registers, num_warps, shared_bytes, expected):
    assert occupancy(chip, registers, num_warps, shared_bytes) == expected


def test_roofline_by_hand():
    assert bound(Work(bytes=4.3e12), "ieee") == (1.0, "memory")
    assert bound(Work(products=395e12), "tf32x3") == (pytest.approx(3.0), "products")
    assert bound(Work(products=790e12), "bf16").seconds == pytest.approx(1.0)
    # in ieee, products and the rest share a unit; beside matrix units they do not
    assert bound(Work(products=67e12, plain=67e12), "ieee").seconds == pytest.approx(2.0)
    assert bound(Work(products=395e12, plain=67e12), "tf32") == (pytest.approx(1.0), "products")
    # 16 a clock on 132 multiprocessors at 1.755 GHz are 3.70656e12 a second
    assert bound(Work(special=3.70656e12), "tf32") == (pytest.approx(1.0), "exponentials")
    # four products of 10^6 x 1000 x 64 are 0.512e12 operations
    case = Case("dec_loss", Size(1_000_000, 1000, 64))
    assert MODELS["dec_loss"].work(case.size, 4).products == 0.512e12
    assert roofline(case).seconds == pytest.approx(0.512e12 / 395e12 * 3)
    assert roofline(case._replace(passes=10)).seconds == pytest.approx(0.512e12 / 395e12 * 30)
    assert Model(lambda size: 10.0, 0, 0, 0, 1, 2, 3).work(Size(5, 2, 4), 2).bytes == 2 * (5 * 4 + 2 * 10 + 3 * 4 * 10)


def test_issue_by_hand():
    case = Case("nearest_center", Size(1000, 100, 64), precision="tf32")
    # 100,000 pairs of 64 features: a hundredth of an instruction a product and half a one an entry
    costs = _gpu_code.Costs(0.01, 0.5, 1, 1.0)
    pairs, rate = 1e5, 4 * 132 * 1.755e9
    assert as_built(case, [costs, None]) == pytest.approx(pairs * (0.64 + 0.5) / rate)
    heavy = costs._replace(work=1000.0)
    assert as_built(case, [heavy]) == pytest.approx(2000.0 * pairs * 64 / 395e12)
    assert as_built(case, [None]) is None
    assert {case.call for case in CASES} == set(MODELS) <= set(CALLS)
    assert {op_of(call) for call in MODELS} == set(OPS)
    assert H200.chip in _gpu_model.LIMITS


CODE = """
.text:
        /*0000*/                   LDG.E R1, [R2] ;
.L_x_1:
        /*0010*/                   FFMA R1, R2, R3, R4 ;
.L_x_2:
        /*0020*/                   HGMMA.64x32x8.F32.TF32 R40, R72, gdesc[UR28], R40 ;
        /*0030*/              @!P1 BRA `(.L_x_2) ;
        /*0040*/                   MUFU.EX2 R1, R1 ;
        /*0050*/                   SHFL.BFLY R1, R1 ;
        /*0060*/              @P6  BRA `(.L_x_1) ;
        /*0070*/                   STG.E [R2], R1 ;
.L_x_3:
        /*0080*/                   BRA `(.L_x_3);
"""


def test_loops_and_kinds_of_instructions():
    code = _gpu_code.read_code(CODE)
    assert code.kinds == ["memory", "float", "tensor", "other", "special", "shuffle", "other", "memory", "other"]
    assert [loop[:3] for loop in code.loops] == [(1, 6, False), (2, 3, True)]
    assert code.longest() == {"tensor": 1, "float": 1, "special": 1, "memory": 0, "shuffle": 1, "other": 2}
    # 4 warps share 64 x 32 x 8 multiply-adds
    found = _gpu_code.costs(code, {"BLOCK_N": 64, "BLOCK_K": 32, "BLOCK_D": 8, "PRECISION": "tf32"}, 4)
    assert found == _gpu_code.Costs(2 * 4 / (64 * 32 * 8), 4 * 4 / (64 * 32), 1, 1.0)
    assert _gpu_code.costs(code, {"BLOCK_N": 64}, 4) is None


def test_a_configuration_that_spills_fails(capsys, monkeypatch):
    good = gpu_static.Configuration("sm_90", "_kernel", "dec_loss", gpu_static.Setting(), "", 4, 255, 0, 1024, 2, 8)
    assert not good.fails
    spilling, large = (type(good)(**{**vars(good), name: value}) for name, value in
                       (("spills", 8), ("shared_bytes", 300 << 10)))  # fmt: skip
    broken = type(good)(**{**vars(good), "error": "no such thing"})
    for one, text in ((spilling, "spills 8"), (large, "bytes of shared memory"), (broken, "does not compile")):
        monkeypatch.setattr(gpu_static, "survey", lambda *_, one=one: [good, one])
        monkeypatch.setattr(gpu_static, "predict", lambda *_: {})
        assert gpu_static.main(["--quick"]) == 1
        assert text in capsys.readouterr().err
    monkeypatch.setattr(gpu_static, "survey", lambda *_: [good])
    assert gpu_static.main([]) == 0
    assert "| sm_90 | 1 | 0 | 0 | 0 | 255 |" in capsys.readouterr().out


def test_settings_go_over_sizes_dtypes_and_precisions():
    for call, chip in itertools.product(("dec_loss", "vat_kl"), CHIPS):
        found = list(gpu_static.settings(call, chip))
        assert len(found) == len(set(found))
        assert {one.dtype for one in found} == {"fp32", "bf16", "fp16", "fp64"}
        precisions = {one.precision for one in found} - {None}
        assert len(precisions) == (0 if call == "vat_kl" else 3 if chip == "gfx942" else 4)
    assert list(gpu_static.settings("dec_loss", "sm_90", quick=True)) == [gpu_static.Setting()]
