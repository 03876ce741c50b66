"""Rows of results in files, and what the report makes of them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from bench import overview, quality_report, report
from bench._rows import Row, append_rows, latest, read_rows, slowdowns


def a_row(provider, median_ms=None, status="ok", **changes):
    spread = {} if median_ms is None else {"q20_ms": 0.9 * median_ms, "q80_ms": 1.1 * median_ms}
    row = Row(
        op="square", shape={"n": 1_000_000, "k": 10}, provider=provider, mode="both", status=status,
        device="cpu", device_name="Some CPU", cores=2, threads=2, dtype="float32",
        date="2030-01-02T03:04:05+00:00", commit=None, dirty=None, versions={"torch": "9.9"},
        median_ms=median_ms, **spread,
    )  # fmt: skip
    return replace(row, **changes)


SOME_ROWS = [
    a_row("numba", 2.0, peak_bytes=3_000_000, first_call_ms=4000.0, cached_start_ms=250.0, max_error=2e-7),
    a_row("eager", 25.0),
    a_row("eager", 12.5, mode="forward"),
    a_row("peer", status="missing", reason="ImportError: No module named 'peer'"),
]


def test_reading_names_file_and_line_of_what_is_no_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"op": "square"}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 1: not a row of this harness"):
        read_rows([path])


def test_default_files_are_those_with_rows(tmp_path):
    append_rows(tmp_path / "square.jsonl", SOME_ROWS)
    (tmp_path / "other.jsonl").write_text('{"seed": 0, "accuracy": 0.8}\n')
    (tmp_path / "empty.jsonl").touch()
    assert report.default_files(tmp_path) == [tmp_path / "square.jsonl"]


def test_unknown_status_is_refused():
    with pytest.raises(ValueError, match="status must be one of"):
        a_row("numba", status="fine")


def test_slowdowns_compare_within_a_group_and_the_last_row_counts():
    newer = a_row("eager", 30.0, date="2030-01-03T00:00:00+00:00")
    kept = latest([*SOME_ROWS, newer])
    assert len(kept) == len(SOME_ROWS)
    assert slowdowns(kept) == {
        (*SOME_ROWS[0].group, "numba"): 1.0,
        (*newer.group, "eager"): 15.0,
        (*SOME_ROWS[2].group, "eager"): 1.0,
    }


def test_markdown_table(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_rows(path, SOME_ROWS)
    table = report.markdown(report.select_mode(read_rows([path]), None), [path])
    assert table.splitlines()[:7] == [
        "**square, both, Some CPU, 2 threads, float32, torch 9.9**",
        "",
        "| shape | provider | ms | 20-80 % | x slower | peak MB | first call s | % roof | error |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| n=1,000,000 k=10 | numba | 2.00 | 1.80-2.20 | best | 3.00 | 4.00, 0.250 |  | 2e-07 |",
        "| n=1,000,000 k=10 | eager | 25.0 | 22.5-27.5 | 12 |  |  |  |  |",
        "| n=1,000,000 k=10 | peer | not installed |  |  |  |  |  |  |",
    ]
    assert table.endswith("Measured 2030-01-02. Made by `python -m bench.report` from `rows.jsonl`.")


def test_modes_of_a_report():
    assert [row.mode for row in report.select_mode(SOME_ROWS, "forward")] == ["forward"]
    assert report.select_mode(SOME_ROWS, "all") == SOME_ROWS


@pytest.mark.parametrize(
    ("value", "text"), [(None, ""), (0.0, "0"), (0.01234, "0.0123"), (9.999, "10.00"), (12345.6, "12,346")]
)
def test_figure(value, text):
    assert report.figure(value) == text


def test_report_writes_between_the_markers_of_a_readme(tmp_path, capsys):
    rows, readme = tmp_path / "rows.jsonl", tmp_path / "README.md"
    append_rows(rows, SOME_ROWS)
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.main([str(rows), "--readme", str(readme)])
    once = readme.read_text()
    assert once.startswith(f"before\n{report.BEGIN}\n**square, both")
    assert once.endswith(f"{report.END}\nafter\n")
    assert "old" not in once
    assert "| numba | 2.00 |" in capsys.readouterr().out
    report.main([str(rows), "--readme", str(readme)])
    assert readme.read_text() == once
    readme.write_text("no markers")
    with pytest.raises(ValueError, match="needs the lines"):
        report.main([str(rows), "--readme", str(readme)])


def test_report_plots_one_picture_an_op(tmp_path):
    image = pytest.importorskip("matplotlib.image")
    path = tmp_path / "rows.jsonl"
    append_rows(path, [*SOME_ROWS, *(replace(row, op="cube") for row in SOME_ROWS)])
    report.main([str(path), "--plot", str(tmp_path / "figure.png")])
    for op in ("square", "cube"):
        pixels = image.imread(tmp_path / f"figure-{op}.png")
        assert pixels.shape[0] > 300
        assert pixels[..., :3].std() > 0.05


def test_quality_report_takes_the_last_summary_of_each_comparison(tmp_path, capsys):
    def summary(acc):
        scores = {f"{side}: {name}": acc for side in ("fastdc", "clustpy") for name in ("acc", "nmi", "seconds")}
        differences = {f"minus clustpy: {name}{part}": 0.01 for name in ("acc", "nmi") for part in ("", " error")}
        about = {"data": "digits", "method": "dec", "comparison": "paired", "seeds": 3, "date": "2030-01-02T00:00"}
        return json.dumps({"kind": "summary", **about, **scores, **differences})

    rows, readme = tmp_path / "rows.jsonl", tmp_path / "README.md"
    rows.write_text("\n".join([summary(0.5), json.dumps({"kind": "run"}), summary(0.75)]))
    readme.write_text(f"before\n{quality_report.BEGIN}\n{quality_report.END}\nafter\n")
    quality_report.main([str(rows), "--readme", str(readme)])
    assert (
        "| digits | DEC | paired | 0.750 / 0.750 | 0.750 / 0.750 | +0.0100 ± 0.0100 | +0.0100 ± 0.0100 | 1.00 |"
        in readme.read_text().splitlines()
    )
    assert "0.500" not in readme.read_text()


def test_overview_holds_ours_against_every_other_of_its_shape():
    other_machine = a_row("numba", 1.0, threads=1)
    small = a_row("numba", 3.0, shape={"n": 10, "k": 2})
    late = {"date": "2030-01-05T00:00:00+00:00"}
    rows = [other_machine, *SOME_ROWS, small, a_row("compiled", 4.0, **late), a_row("reference", 50.0, **late)]
    table = overview.markdown(rows)
    assert table.count("| `square` |") == 1  # nothing competes at the small shape
    assert "| `square` | n=1,000,000 k=10 | 2.00 | compiled 2.00, eager 12 |" in table
    assert "Some CPU, 2 threads, float32, torch 9.9; " in table
    assert "2030-01-02 to 2030-01-05" in table
