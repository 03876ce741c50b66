"""The benchmark harness on tiny inputs: who is timed, what is measured, what a row holds."""

from __future__ import annotations

import json
import platform
import time
from collections import Counter
from dataclasses import fields, replace

import pytest
import torch

from bench import _measure, _memory, _student_t, bench_dec_loss
from bench._child import Errand, fresh_measurements
from bench._environment import ROOT, Ceiling
from bench._harness import Bench, Call, Cost, Provider, Rows, all_benches, measure_errors, parse_shape
from bench._measure import Settings, measure
from bench._rows import Row, append_rows, read_rows
from bench._timing import Budget, interleave
from bench.run import main

QUICK = Settings(budget=Budget(repeats=3), fresh=False)
CEILING = Ceiling(gemm_gflops=100.0, copy_gbs=10.0)
BENCHES = all_benches()
CALLS: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def _known_ceiling(monkeypatch):
    CALLS.clear()
    monkeypatch.setattr(_measure, "calibrate", lambda *_: CEILING)


def square(x):
    CALLS["right"] += 1
    return x.square().sum()


def square_of_wrong_value(x):
    CALLS["wrong"] += 1
    return x.square().sum() + 0.01 * x.detach().square().sum()


def square_of_wrong_gradient(x):
    CALLS["wrong_gradient"] += 1
    return (x * x.detach()).sum()


def square_that_fails(x):
    raise RuntimeError("this shape is beyond me\nand here is why")


def make_absent():
    raise ImportError("No module named 'absent'")


def never_made():
    raise AssertionError("a provider that does not fit was made")


def inputs_of_square(*, n, dtype, device, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(n, generator=generator).to(device, dtype)}


def truth_of_square(inputs, gradients):
    x = inputs["x"].double()
    return {"y": x.square().sum(), **({"grad_x": 2 * x} if gradients else {})}


SQUARE = Bench(
    op="square",
    shapes=[{"n": 8}],
    tiny={"n": 2},
    inputs=inputs_of_square,
    outputs=("y",),
    gradients=("x",),
    truth=truth_of_square,
    cost=lambda *, n, itemsize, mode: Cost(flops=0.0, bytes_moved=1e4),
    providers={
        "right": Provider(lambda: square),
        "wrong": Provider(lambda: square_of_wrong_value),
        "wrong_gradient": Provider(lambda: square_of_wrong_gradient),
        "absent": Provider(make_absent),
        "greedy": Provider(never_made, extra_bytes=lambda *, n, itemsize: 1 << 60),
        "broken": Provider(lambda: square_that_fails),
        "elsewhere": Provider(never_made, devices=("cuda",)),
    },
)


@pytest.fixture
def rows():
    return measure(SQUARE, {"n": 8}, QUICK)


def by_provider(rows, mode):
    return {row.provider: row for row in rows if row.mode == mode}


def test_status_of_every_provider(rows):
    expected = {
        "right": "ok",
        "wrong": "wrong",
        "wrong_gradient": "wrong",
        "absent": "missing",
        "greedy": "out_of_memory",
        "broken": "failed",
    }
    for mode in ("forward", "backward", "both"):
        assert {name: row.status for name, row in by_provider(rows, mode).items()} == expected


def test_only_right_providers_have_times(rows):
    for row in rows:
        timed = (row.median_ms, row.q20_ms, row.q80_ms, row.percent_of_roofline)
        if row.status == "ok":
            assert row.repeats == 3
            assert 0 < row.q20_ms <= row.median_ms <= row.q80_ms
        else:
            assert timed == (None,) * 4
            assert row.repeats == 0
            assert row.reason


def test_wrong_provider_is_never_timed(rows):
    checks = 2  # once without gradients, once with
    assert CALLS["wrong"] == checks
    assert CALLS["wrong_gradient"] == checks
    assert CALLS["right"] > checks


def test_reasons_name_the_cause(rows):
    found = by_provider(rows, "both")
    assert found["wrong"].reason == "y is off by 0.01, allowed is 0.001"
    assert found["wrong_gradient"].reason == "grad_x is off by 0.5, allowed is 0.001"
    assert found["absent"].reason == "ImportError: No module named 'absent'"
    assert found["broken"].reason == "RuntimeError: this shape is beyond me"
    assert found["greedy"].reason.startswith("needs 1152921504.6 GB")


def test_provider_asked_for_by_name_on_another_device_is_reported():
    (row,) = measure(SQUARE, {"n": 8}, replace(QUICK, providers=("elsewhere",), modes=("forward",)))
    assert (row.status, row.reason) == ("missing", "does not run on cpu")


def test_percent_of_roofline(rows):
    row = by_provider(rows, "both")["right"]
    least_ms = 1e4 / 10e9 * 1e3
    assert row.percent_of_roofline == pytest.approx(100 * least_ms / row.median_ms)
    assert (row.gemm_gflops, row.copy_gbs) == CEILING
    assert CEILING.least_ms(Cost(flops=2e9, bytes_moved=1.0)) == pytest.approx(20.0)


def test_prepare_is_timed_apart_and_its_result_is_what_runs():
    def prepare(inputs):
        time.sleep(0.02)
        return {"x": inputs["x"].numpy()}

    provider = Provider(lambda: lambda x: float((x**2).sum()), prepare=prepare)
    bench = replace(SQUARE, gradients=(), providers={"numpy": provider})
    (row,) = measure(bench, {"n": 8}, QUICK)
    assert row.status == "ok"
    assert row.prepare_ms >= 20


def test_tolerance_of_a_provider_known_to_lose_digits():
    rough = Provider(lambda: square_of_wrong_value, tolerance=0.05)
    rows = measure(replace(SQUARE, providers={"rough": rough}), {"n": 8}, QUICK)
    assert {row.status for row in rows} == {"ok"}
    assert rows[0].max_error == pytest.approx(0.01, rel=1e-3)


def test_python_floats_keep_their_digits():
    call = Call(replace(SQUARE, gradients=()), lambda x: 1 / 3, {"x": torch.ones(1)})
    assert call.results(False)["y"].item() == 1 / 3


def test_truth_without_results_is_refused():
    with pytest.raises(ValueError, match="no provider could be checked"):
        measure(replace(SQUARE, truth=lambda inputs, gradients: {}), {"n": 8}, QUICK)


def test_errors_of_absent_misshapen_nan_and_partly_known_results():
    bench = replace(SQUARE, outputs=("y",))
    truth = {"y": torch.tensor([1.0, 4.0])}
    assert measure_errors(bench, {}, truth, {}) == {"y": float("inf")}
    assert measure_errors(bench, {"y": torch.ones(3)}, truth, {}) == {"y": float("inf")}
    assert measure_errors(bench, {"y": torch.tensor([1.0, float("nan")])}, truth, {}) == {"y": float("inf")}
    assert measure_errors(bench, {"y": torch.tensor([1.0, 5.0])}, truth, {}) == {"y": 0.25}
    some = {"y": Rows(torch.tensor([2, 0]), torch.tensor([4.0, 1.0]))}
    assert measure_errors(bench, {"y": torch.tensor([1.0, 9.0, 4.0])}, some, {}) == {"y": 0.0}


def test_providers_take_turns_and_each_round_starts_with_another():
    turns = []
    calls = {}
    for name in "abc":
        calls[name] = Call(SQUARE, lambda x, name=name: turns.append(name), {"x": torch.ones(1)})
    samples = interleave(calls, "forward", "cpu", Budget(repeats=3))
    assert turns[::2] == list("abcbcacab")  # each sample follows a call that is not measured
    assert {name: len(values) for name, values in samples.items()} == {"a": 3, "b": 3, "c": 3}


def test_budget():
    assert [Budget(repeats=2).allows(rounds, elapsed=99.0) for rounds in range(4)] == [
        True,
        True,
        False,
        False,
    ]
    assert Budget(seconds=1.0).allows(4, elapsed=50.0)
    assert not Budget(seconds=1.0).allows(5, elapsed=1.5)
    assert not Budget(seconds=1.0).allows(100, elapsed=0.1)


@pytest.mark.parametrize("peak", [_memory.peak_during, lambda f, device: _memory._sampled_peak(f)])
def test_peak_memory_sees_a_temporary(peak):
    size = 96 << 20

    def function():
        temporary = torch.ones(size, dtype=torch.uint8)
        time.sleep(0.02)
        return int(temporary[-1])

    base = _memory.resident_bytes("cpu")
    top, value = peak(function, "cpu")
    assert value == 1
    assert 0.95 * size < top - base < 1.3 * size


def test_fresh_processes_measure_first_calls_and_memory():
    shape = {"n": 300_000, "k": 30, "d": 4}  # matrices above 32 MB, which malloc returns at once
    modes = ("forward", "both")
    figures = fresh_measurements(Errand("dec_loss", "eager_gemm", shape, "float32", "cpu", 1, modes))
    assert figures["first_call_ms"] > 0
    assert figures["cached_start_ms"] > 0
    matrix = 4 * shape["n"] * shape["k"]
    assert 4 * matrix < figures["peak_bytes"]["forward"] < 6 * matrix
    assert 7 * matrix < figures["peak_bytes"]["both"] < 9 * matrix


def test_row_is_strict_json_with_every_field_and_comes_back(rows, tmp_path):
    path = tmp_path / "folder" / "rows.jsonl"
    append_rows(path, rows[:2])
    append_rows(path, rows[2:])
    assert read_rows([path]) == rows
    lines = path.read_text().splitlines()
    assert len(lines) == len(rows)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    for line in lines:
        assert set(json.loads(line, parse_constant=refuse)) == {field.name for field in fields(Row)}
        assert str(ROOT) not in line
        assert not platform.node() or platform.node() not in line


def test_row_states_machine_and_code(rows):
    row = rows[0]
    assert (row.device, row.dtype, row.threads) == ("cpu", "float32", 1)
    assert row.cores >= 1
    assert row.device_name
    assert set(row.versions) == {"python", "torch", "triton", "numba", "numpy"}
    assert row.versions["torch"] == torch.__version__
    assert row.date.endswith("+00:00")
    assert row.commit is None or len(row.commit) == 40


def test_parse_shape():
    assert parse_shape("n=1000, k=10", ["n", "k"]) == {"n": 1000, "k": 10}
    with pytest.raises(ValueError, match="names n, k, got 'n=1'"):
        parse_shape("n=1", ["n", "k"])
    with pytest.raises(ValueError, match="a shape reads n=1000,k=10"):
        parse_shape("n=1e6,k=10", ["n", "k"])


def test_command_line_appends_rows_and_prints_a_table(tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    arguments = ["--op", "dec_loss", "--shapes", "n=50,k=3,d=2", "--providers", "eager_gemm", "broadcast"]
    rows = main([*arguments, "--repeats", "2", "--threads", "1", "2", "--fresh", "none", "--out", str(out)])
    assert read_rows([out]) == rows
    assert [row.threads for row in rows[::6]] == [1, 2]
    assert {row.status for row in rows} == {"ok"}
    printed = capsys.readouterr().out
    assert "dec_loss, n=50 k=3 d=2" in printed
    assert "eager_gemm" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--op", "nothing"], "invalid choice: 'nothing'"),
        (["--op", "dec_loss", "--shapes", "n=5"], "a shape of this op names n, k, d, got 'n=5'"),
        (
            ["--op", "dec_loss", "--providers", "magic"],
            "dec_loss: no provider magic; it has reference, numba",
        ),
        ([], "name an op with --op"),
    ],
)
def test_command_line_errors(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("op", BENCHES)
def test_providers_of_every_bench_are_right_at_its_tiny_shape(op):
    bench = BENCHES[op]
    names = tuple(
        name for name, p in bench.providers.items() if "cpu" in p.devices and not p.compiles_each_shape
    )  # fmt: skip
    rows = measure(bench, bench.tiny, replace(QUICK, providers=names, budget=Budget(repeats=1)))
    bad = {row.provider: row.reason for row in rows if row.status not in ("ok", "missing")}
    assert not bad
    assert any(row.status == "ok" for row in rows)


@pytest.mark.parametrize("op", BENCHES)
def test_costs_are_positive(op):
    bench = BENCHES[op]
    for mode in bench.modes:
        cost = bench.cost(**bench.shapes[0], itemsize=4, mode=mode)
        assert cost.flops >= 0
        assert cost.bytes_moved > 0


def test_truth_of_dec_loss_is_the_plain_formula_for_any_chunk(monkeypatch):
    inputs = _student_t.mixture(57, 4, 3, torch.float64, "cpu")
    x, centers = (inputs[name].clone().requires_grad_() for name in ("x", "centers"))
    kernel = 1 / (1 + torch.cdist(x, centers) ** 2)
    q = kernel / kernel.sum(1, keepdim=True)
    p = (q**2 / q.sum(0)).detach()
    p = p / p.sum(1, keepdim=True)
    loss = torch.nn.functional.kl_div(q.log(), p, reduction="batchmean")
    grad_x, grad_centers = torch.autograd.grad(loss, [x, centers])
    for n_bytes in (1, 8 * 4 * 10, 1 << 20):
        monkeypatch.setattr(_student_t, "TRUTH_BYTES", n_bytes)
        truth = bench_dec_loss.truth(inputs, gradients=True)
        torch.testing.assert_close(truth["loss"], loss.detach(), rtol=1e-12, atol=0)
        torch.testing.assert_close(truth["grad_x"], grad_x, rtol=1e-9, atol=1e-14)
        torch.testing.assert_close(truth["grad_centers"], grad_centers, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("shape", bench_dec_loss.SHAPES, ids=lambda shape: f"k{shape['k']}")
def test_mixture_is_neither_uniform_nor_one_hot(shape):
    inputs = _student_t.mixture(**{**shape, "n": 1000}, dtype=torch.float32, device="cpu")
    confidence = _student_t.assign_gemm(**inputs).amax(1)
    assert 0.3 < confidence.quantile(0.05)
    assert confidence.quantile(0.95) < 0.9
