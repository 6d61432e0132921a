from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from fewshot_blo.errors import CheckpointError
from fewshot_blo.records.json_files import read_json, write_json

CONTENT = {"figures": {"row": {"distance": 0.1, "lost": math.inf}}, "name": "é"}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write_json(tmp_path / "f.json", CONTENT)
    assert read_json(tmp_path / "f.json") == CONTENT
    (tmp_path / "old.json").write_text(json.dumps(CONTENT))
    assert read_json(tmp_path / "old.json") == CONTENT


def test_no_changed_value_is_read(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    write_json(path, CONTENT)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            found = read_json(path)
        except CheckpointError as error:
            assert "f.json is damaged" in str(error)  # noqa: PT017 (some flips are white space)
        else:
            assert {name: found[name] for name in CONTENT} == CONTENT
    for text in ("", "[1]", "{", "5"):
        path.write_text(text)
        with pytest.raises(CheckpointError, match="is damaged"):
            read_json(path)
