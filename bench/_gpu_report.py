"""Tables of what ``gpu_static`` found, and of what it predicts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import triton

from bench._gpu_code import KINDS
from bench._gpu_configuration import Configuration
from bench._gpu_model import H200, MODELS, SIZES, Case, roofline
from bench._text import figure
from fastdc.kernels._calls import WITHOUT_KERNELS
from fastdc.kernels._precision import PRECISIONS
from fastdc.kernels._testing import SHARED_BYTES

BEGIN, END = "<!-- gpu_static:begin -->", "<!-- gpu_static:end -->"


def failure_text(one: Configuration) -> str:
    """Why a configuration does not pass."""
    if one.error:
        return f"does not compile: {one.error}"
    if one.spills:
        return f"spills {one.spills} ({one.registers} registers, {one.num_warps} warps)"
    return f"wants {one.shared_bytes} bytes of shared memory of {SHARED_BYTES[one.chip]}, {one.num_warps} warps"


def markdown(found: Sequence[Configuration], built: Mapping[Case, float | None], quick: Sequence[str] = ()) -> str:
    """All tables; ``quick`` are the chips of which one size was built."""
    chips = list(dict.fromkeys(one.chip for one in found))
    parts = [_summary(found, chips, quick), _kernels(found, chips), _precisions(found, chips)]
    return "\n\n".join(part for part in (*parts, _predictions(built)) if part)


def _table(head: Sequence[str], rows: Iterable[Sequence[object]], left: int = 1) -> str:
    lines = ["| " + " | ".join(head) + " |"]
    lines.append("|" + "|".join([" --- "] * left + [" ---: "] * (len(head) - left)) + "|")
    return "\n".join([*lines, *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)])


def _summary(found: Sequence[Configuration], chips: Sequence[str], quick: Sequence[str]) -> str:
    rows = []
    for chip in chips:
        own = [one for one in found if one.chip == chip]
        built = [one for one in own if not one.error]
        fewest = min(built, key=lambda one: one.warps, default=None)
        rows.append(
            (
                chip,
                len(own),
                sum(bool(one.error) for one in own),
                sum(one.spills > 0 for one in own),
                sum(one.shared_bytes > SHARED_BYTES[chip] for one in own),
                max((one.registers for one in built), default=0),
                "" if fewest is None else f"{fewest.warps} (`{fewest.kernel}`, {fewest.limited_by})",
            )
        )
    head = ("chip", "configurations", "fail", "spill", "too much shared memory", "most registers", "fewest warps an SM")
    partly = f", {', '.join(quick)} with `--quick`" if quick else ""
    return f"### Every configuration\n\nBuilt by Triton {triton.__version__}{partly}.\n\n" + _table(head, rows)


def _kernels(found: Sequence[Configuration], chips: Sequence[str]) -> str:
    """Each kernel at the largest size in float32, by the default precision; the mix on the first NVIDIA chip."""
    shown: dict[str, dict[str, Configuration]] = {}
    for one in found:
        if one.setting == type(one.setting)() and not one.error:
            shown.setdefault(one.kernel, {}).setdefault(one.chip, one)
    mixed = "sm_90" if "sm_90" in chips else chips[0]
    rows = []
    for kernel, by_chip in sorted(shown.items()):
        cells = [_cell(by_chip.get(chip)) for chip in chips]
        mix = by_chip[mixed].mix if mixed in by_chip else {}
        rows.append((f"`{kernel}`", *cells, " ".join(str(mix.get(kind, "")) for kind in KINDS)))
    head = ("kernel", *chips, f"longest loop on {mixed}: {' '.join(KINDS)}")
    about = (
        "Registers of a thread / KB of shared memory / warps that a multiprocessor holds, and the instruction that "
        "multiplies on matrix units; 2000 clusters, 128 features, float32, default precision."
    )
    return f"### Kernels\n\n{about}\n\n" + _table(head, rows)


def _cell(one: Configuration | None) -> str:
    if one is None:
        return ""
    return f"{one.registers} / {figure(one.shared_bytes / 1024)} / {one.warps} {one.matrix_instruction}".rstrip()


def _precisions(found: Sequence[Configuration], chips: Sequence[str]) -> str:
    """By which instruction each precision of products is made."""
    seen: dict[tuple[str, str], set[str]] = {}
    for one in found:
        if one.products and one.setting.size == SIZES[0] and one.setting.dtype == "fp32" and not one.error:
            seen.setdefault((one.products, one.chip), set()).add(one.matrix_instruction or "none")
    if not seen:
        return ""
    names = [name for name in PRECISIONS if any((name, chip) in seen for chip in chips)]
    rows = [(name, *(", ".join(sorted(seen.get((name, chip), ()))) for chip in chips)) for name in names]
    return "### Matrix units by precision\n\n" + _table(("precision", *chips), rows, left=1 + len(chips))


def _predictions(built: Mapping[Case, float | None]) -> str:
    """Of each case the roofline, and what the kernels as built take."""
    rows = []
    for case, seconds in built.items():
        least, model = roofline(case), MODELS[case.call]
        size = " ".join(f"{name}={value:,}" for name, value in zip("nkd", case.size) if value)
        passes = f" x {case.passes}" if case.passes > 1 else ""
        of_built = "no kernel" if case.call in WITHOUT_KERNELS else "" if seconds is None else figure(1e3 * seconds)
        ratio = "" if seconds is None else figure(seconds / least.seconds)
        tflop = model.work(case.size, 4).products * case.passes / 1e12
        rows.append(
            (f"`{case.call}`", size + passes, case.dtype, case.precision if model.products else "", figure(tflop),
             figure(1e3 * least.seconds), least.by, of_built, ratio)
        )  # fmt: skip
    rates = (
        f"{H200.bytes / 1e12:.1f} TB/s copied, {H200.matrix['bf16'] / 1e12:.0f} TFLOP/s in bf16, "
        f"{H200.matrix['tf32'] / 1e12:.0f} in tf32 (a third of it in tf32x3), {H200.plain / 1e12:.0f} in float32, "
        f"{H200.special / 1e12:.1f}e12 exponentials a second"
    )
    about = (
        f"{H200.name}: {rates}. *bound* is the time of the slowest unit for the least work that the operator can do "
        "with; *as built* adds up what our kernels issue (instructions of their loops at one a clock on each of four "
        "schedulers, or the matrix units where these take longer), gradients included; empty where no kernel goes over "
        "tiles of pairs, *no kernel* where a GPU runs torch. Predictions, not measurements."
    )
    head = ("call", "size", "dtype", "precision", "TFLOP", "bound, ms", "bound by", "as built, ms", "ratio")
    return f"### Predicted times\n\n{about}\n\n" + _table(head, rows, left=4)
