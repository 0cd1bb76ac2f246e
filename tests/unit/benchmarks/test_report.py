"""The table, the file and the percentiles of the benchmarks."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import report
from benchmarks.report import Column, Table, number, quantile


def test_table_aligns_cells_and_leaves_out_what_was_not_measured() -> None:
    table = Table((Column("scenario", 9, left=True), Column("CPU", 6, "s"), Column("memory", 6)))
    assert table.head() == ["scenario     CPU memory", "               s"]
    assert table.line(["start", number(1.234, 2), number(None)]) == "start       1.23"
    assert table.line(["start", None, 7]) == "start                 7"


def test_quantile_is_a_measured_value_and_none_of_nothing() -> None:
    values = [float(n) for n in range(100, 0, -1)]
    assert quantile(values, 0.5) == 50.0
    assert quantile(values, 0.99) == 99.0
    assert quantile(values, 1.0) == 100.0
    assert quantile([3.0], 0.5) == quantile([3.0], 0.01) == 3.0
    assert quantile([], 0.5) is None


def test_file_has_the_rows_and_what_they_have_in_common(tmp_path: Path) -> None:
    path = tmp_path / "new" / "figures.json"
    report.write(path, [{"scenario": "start", "cpu": 1.5}], images=5)
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["rows"] == [{"scenario": "start", "cpu": 1.5}]
    assert content["about"]["images"] == 5
    assert content["about"]["cores"] >= 1
    assert content["about"]["revision"]
