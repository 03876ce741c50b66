"""Benchmarks of the methods: what is counted, that rows come, and the page made of them."""

import json

import pytest
import torch

from bench import methods as bench_methods
from bench import methods_report, overhead
from bench.overhead import Passes, count_passes
from fastdc import CC, IDEC, IMSAT, SCCL, SDCN
from fastdc.methods import list_methods
from tests.method_cases import digits

pytestmark = pytest.mark.usefixtures("one_thread")
SHORT = {"hidden": (16, 16), "n_latent": 4, "epochs": 3, "random_state": 0}


@pytest.mark.parametrize(
    ("model", "passes"),
    [
        (IDEC(3, pretrain_epochs=2, **SHORT), {"pretrain": Passes(1, 1), "refine": Passes(1, 1)}),
        (CC(3, **SHORT), {"train": Passes(2, 0)}),
        (IMSAT(3, **SHORT), {"train": Passes(3, 0)}),  # the rows, the direction, the perturbed rows
        (SCCL(3, **SHORT), {"train": Passes(3, 0)}),
        (SDCN(3, pretrain_epochs=2, **SHORT), {"pretrain": Passes(1, 1), "refine": Passes(1, 1)}),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_passes_are_those_of_the_method(model, passes):
    x = torch.from_numpy(digits(100)[0])
    assert count_passes(x, model) == passes
    assert model.callbacks is None
    assert model.epochs == 3
    overhead.bare_loop(x, model, passes)
    overhead.bare_loop(x, model, None)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_rows_make_the_page(tmp_path, monkeypatch):
    runs, overheads, page = tmp_path / "runs.jsonl", tmp_path / "overhead.jsonl", tmp_path / "METHODS.md"
    monkeypatch.setitem(bench_methods.RECIPES, "DAC", {"hidden": (8,), "epochs": 1})
    monkeypatch.setitem(methods_report.BELOW, "DAC", "one epoch")
    for name, path in {"RESULTS": runs, "OVERHEAD": overheads, "TABLE": page}.items():
        monkeypatch.setattr(methods_report, name, path)
    arguments = ["--methods", "DAC", "--epochs", "1", "--repeats", "1", "--out", str(overheads)]
    overhead.main([*arguments, "--threads", "1"])
    overhead.main([*arguments, "--threads", "1", "--images"])
    rows = [json.loads(line) for line in overheads.read_text(encoding="utf-8").splitlines()]
    assert [row["images"] for row in rows] == [False, True]
    passes = {"encoder": 1, "decoder": 0, "silent": 1}  # the rows as they are choose the pairs
    assert all(row["ratio"] > 0 and row["plain_ratio"] > 0 and row["passes"] == {"train": passes} for row in rows)
    bench_methods.main(["--methods", "KMeans", "DAC", "--data", "wine", "digits", "--seeds", "0", "1"])
    text = page.read_text(encoding="utf-8")
    assert "## wine" in text
    assert "## moons\n" not in text
    assert f"Not above k-means are DAC: {methods_report.OF_DATA['wine']}." in text
    assert "| digits as images | DAC |" in text
    assert f"Not above k-means, and why.\n\n- DAC: {methods_report.BELOW['DAC']}." in text
    assert all(f"| {entry.name} |" in text for entry in list_methods())
    monkeypatch.delitem(methods_report.BELOW, "DAC")
    with pytest.raises(SystemExit, match="not above k-means on digits: DAC"):
        methods_report.main()
