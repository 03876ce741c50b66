"""What is known of the GPU kernels without a GPU: ``python -m bench.gpu_static [--readme bench/GPU.md]``.

Every launch that the operators make over a grid of sizes, dtypes and precisions is built for each chip. Leaves with 1
if one of them fails to compile, spills registers, or wants more shared memory than the chip has.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from bench import _gpu_code, _gpu_report
from bench._gpu_configuration import Configuration, Setting
from bench._gpu_model import CASES, H200, SIZES, Case, as_built, occupancy
from bench.report import replace_between_markers
from fastdc.kernels import _testing
from fastdc.kernels._calls import CALLS, Size, op_of, takes_precision
from fastdc.kernels._launches import CHIPS, Launch, default_precision, launches
from fastdc.kernels._precision import PRECISIONS
from fastdc.kernels._testing import compile_launch

MANY = 4096  # clusters beyond which launchers choose no other tiles


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m bench.gpu_static", description=__doc__)
    parser.add_argument("--ops", nargs="+", choices=sorted({op_of(name) for name in CALLS}), metavar="OP")
    parser.add_argument("--chips", nargs="+", choices=list(CHIPS), default=list(CHIPS))
    parser.add_argument(
        "--quick", nargs="*", choices=list(CHIPS), metavar="CHIP",
        help="one size, and the default precision of float32: on these chips, or on all where none is named",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that compile")
    parser.add_argument("--json", type=Path, help="write every configuration into this file, one a line")
    parser.add_argument("--readme", type=Path, help="write the tables into this file, between markers")
    options = parser.parse_args(arguments)
    calls = [name for name in CALLS if options.ops is None or op_of(name) in options.ops]
    quick = [] if options.quick is None else options.quick or options.chips
    found = survey(calls, options.chips, quick, options.workers)
    if options.json:
        options.json.write_text("".join(json.dumps(asdict(one)) + "\n" for one in found))
    table = _gpu_report.markdown(found, predict(calls, options.workers), quick)
    print(table)
    if options.readme:
        replace_between_markers(options.readme, table, _gpu_report.BEGIN, _gpu_report.END)
    failing = [one for one in found if one.fails]
    for one in failing:
        print(f"{one.chip} {one.kernel} ({one.call}, {one.setting}) {_gpu_report.failure_text(one)}", file=sys.stderr)
    return 1 if failing else 0


def survey(calls: Iterable[str], chips: Iterable[str], quick: Sequence[str], workers: int) -> list[Configuration]:
    """Every different launch of the calls, built and read."""
    first_of: dict[tuple[str, Launch], tuple[str, Setting]] = {}
    for chip in chips:
        for call in calls:
            for setting in settings(call, chip, chip in quick):
                for launch in launches(call, chip, *setting):
                    first_of.setdefault((chip, launch), (call, setting))
    jobs = [(chip, launch, *origin) for (chip, launch), origin in first_of.items()]
    with ProcessPoolExecutor(workers) as pool:
        return list(pool.map(_build, jobs, chunksize=4))


def predict(calls: Iterable[str], workers: int) -> dict[Case, float | None]:
    """Seconds of each case of the calls by what its kernels issue on the chip that is modelled."""
    jobs = {case: list(_launches_of(case)) for case in CASES if case.call in calls}
    with ProcessPoolExecutor(workers) as pool:
        built = {case: [one.costs for one in pool.map(_build, own)] for case, own in jobs.items()}
    return {case: as_built(case, costs) for case, costs in built.items()}


def _launches_of(case: Case) -> Iterator[Job]:
    """Without those that only see what rounding may have decided."""
    _, k, d = case.size
    setting = Setting(Size(0, min(k or MANY, MANY), d or 1), case.dtype.replace("i64", "fp32"), case.precision)
    for launch in launches(case.call, H200.chip, *setting):
        if launch.kernel != "_decide_kernel" and not dict(launch.constants).get("EXACT"):
            yield H200.chip, launch, case.call, setting


def settings(call: str, chip: str, quick: bool = False) -> Iterator[Setting]:
    """How an operator is called for a chip: sizes, then dtypes, layouts and precisions at the largest one."""
    yield Setting()
    if quick:
        return
    yield from (Setting(size) for size in SIZES[1:])
    yield from (Setting(dtype=dtype) for dtype in ("bf16", "fp16", "fp64"))
    yield Setting(strided=True)
    if takes_precision(call):
        for precision in PRECISIONS:
            if precision != default_precision(chip) and not (precision == "tf32x3" and chip.startswith("gfx")):
                yield Setting(precision=precision)


Job = tuple[str, Launch, str, Setting]  # chip, what is built for it, and the call that launches it


def _build(job: Job) -> Configuration:
    """One configuration; what an earlier run has found of the same source and launch is taken from a file."""
    chip, launch, call, setting = job
    one = Configuration(chip, launch.kernel, call, setting, _products(launch))
    place = _cache_folder() / f"{_key(chip, launch)}.json"
    if place.exists():
        kept = json.loads(place.read_text())
        kept["costs"] = kept["costs"] and _gpu_code.Costs(*kept["costs"])
        return _placed(Configuration(**kept | {"call": call, "setting": setting, "products": one.products}))
    try:
        compiled = compile_launch(launch, chip)
    except Exception as error:  # noqa: BLE001 - whatever a compiler says of one kernel is that kernel's result
        one.error = f"{type(error).__name__}: {str(error).strip()[-300:]}"
        return one
    code = _gpu_code.read_code(compiled.instructions())
    one.num_warps, one.registers, one.spills = compiled.num_warps, compiled.registers, compiled.spills
    one.shared_bytes, one.matrix_instruction = compiled.shared_bytes, compiled.matrix_instruction
    one.mix, one.costs = code.longest(), _gpu_code.costs(code, dict(launch.constants), one.num_warps)
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(asdict(one)))
    partial.replace(place)
    return _placed(one)


def _placed(one: Configuration) -> Configuration:
    one.programs, one.warps, one.limited_by = occupancy(one.chip, one.registers, one.num_warps, one.shared_bytes)
    return one


def _products(launch: Launch) -> str:
    """The precision of the products of a kernel; empty for one that has none, or only differences in float64."""
    constants = dict(launch.constants)
    precision = "" if constants.get("EXACT") else str(constants.get("PRECISION", ""))
    return "bf16" if constants.get("IN_BF16") else precision


def _cache_folder() -> Path:
    """Beside Triton's own cache."""
    return Path(os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache").with_name("fastdc_static")


@cache
def _version() -> str:
    """Of the compiler, and of what is read out of its results."""
    import triton

    sources = [Path(module.__file__ or "").read_text() for module in (_gpu_code, _testing)]
    return triton.__version__ + hashlib.sha256("".join(sources).encode()).hexdigest()


def _key(chip: str, launch: Launch) -> str:
    content: Any = (_version(), chip, launch, launch.load().cache_key)
    return hashlib.sha256(repr(content).encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
