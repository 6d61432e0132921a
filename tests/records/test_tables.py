"""Tables in Markdown and CSV."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from fewshot_blo.records.tables import comma_separated, markdown, write_table


def cells(line: str) -> list[str]:
    """Of a row, read as GitHub reads it: an escaped bar stands in a cell."""
    parts = line.replace("\\|", "\0").strip().strip("|").split("|")
    return [part.strip().replace("\0", "|") for part in parts]


def test_cells_are_read_back_as_they_were() -> None:
    columns = ["method", "accuracy |v|", "steps"]
    rows = [["a|b", "0.50 ± 1.00", "1e3"], ["two\nlines", "–", ""], ["007", "+1.20", "100,000"]]
    head, rule, *lines = markdown(columns, rows).splitlines()
    assert cells(head) == columns
    assert set(rule) == {"|", "-"}
    assert [cells(line) for line in lines] == [rows[0], ["two lines", "–", ""], rows[2]]
    assert len({len(line) for line in (head, rule, *lines)}) == 1


def test_a_table_without_rows_has_its_columns() -> None:
    head, rule = markdown(["method", "steps"], []).splitlines()
    assert cells(head) == ["method", "steps"]
    assert set(rule) == {"|", "-"}


def test_both_files(tmp_path: Path) -> None:
    records = [{"method": "a, b", "accuracy": 0.1 + 0.2}, {"method": 'c "d"', "steps": 3}]
    write_table(tmp_path, "± text\n", records)
    assert (tmp_path / "table.md").read_text(encoding="utf-8") == "± text\n"
    with (tmp_path / "table.csv").open(encoding="utf-8", newline="") as file:
        first, second = csv.DictReader(file)
    assert first == {"method": "a, b", "accuracy": str(0.1 + 0.2), "steps": ""}
    assert second == {"method": 'c "d"', "accuracy": "", "steps": "3"}


@pytest.mark.parametrize("text", ["=1+1", "+cmd|' /C calc'!A0", "-a", "@SUM(1)", "\tx", "\rx"])
def test_a_spreadsheet_finds_no_formula(text: str) -> None:
    table = comma_separated([{"name": text, text: 1}])
    head, row = csv.reader(io.StringIO(table, newline=""))
    assert head == ["name", f"'{text}"]
    assert row == [f"'{text}", "1"]


def test_numbers_and_other_texts_are_left_as_they_are() -> None:
    records = [{"a": -1.5, "b": "-1.5", "c": "+1.20", "d": "a=b", "e": "", "f": None}]
    rows = list(csv.reader(io.StringIO(comma_separated(records))))
    assert rows[1] == ["-1.5", "-1.5", "+1.20", "a=b", "", ""]
    assert comma_separated([], ["x", "y"], separator="\t") == "x\ty\r\n"
