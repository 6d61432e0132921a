"""Lines that are added, and folders that are made ready."""

from __future__ import annotations

import os
from pathlib import Path

from fewshot_blo.records.files import append_line, prepare_folder
from fewshot_blo.records.locks import writing


def test_a_line_without_its_end_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    for before, kept in (("", ""), ("one\n", "one\n"), ("one\ntw", "one\n"), ("on", "")):
        path.write_text(before)
        append_line(path, "näxt")
        assert path.read_text(encoding="utf-8") == kept + "näxt\n"


def test_a_folder_is_swept_before_it_is_written_to(tmp_path: Path) -> None:
    old, new, other = (tmp_path / f".{name}.tmp" for name in ("0" * 16, "1" * 16, "mine"))
    for file in (old, new, other):
        file.touch()
    for file in (old, other):
        os.utime(file, (0, 0))
    below = tmp_path / "rows" / old.name
    below.parent.mkdir()
    below.touch()
    os.utime(below, (0, 0))
    prepare_folder(tmp_path)
    assert not old.exists()
    assert below.exists()
    with writing(tmp_path):
        assert not below.exists()
    assert new.exists()  # Its writer may not have locked it yet.
    assert other.exists()
