from __future__ import annotations

import random
import runpy
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from fewshot_blo.errors import CheckpointError
from fewshot_blo.records import checked_zip
from fewshot_blo.records.tensor_files import read_tensors, write_tensors

ROOT = Path(__file__).resolve().parents[2]
DAMAGE = runpy.run_path(str(ROOT / "tests" / "faults" / "damage.py"))
RELEASED = ROOT / "checkpoints" / "released" / "omniglot-5w1s-maml" / "best.pt"


@pytest.fixture(params=["in memory", "on disk"])
def _both_readers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small and large files are read in different ways."""
    if request.param == "on disk":
        monkeypatch.setattr(checked_zip, "_SMALL", 0)


def content() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {"step": 3, "outer": {n: torch.randn(40, 50, generator=generator) for n in "abc"}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_tensors(content(), tmp_path / "last.pt", "checkpoint")
    return tmp_path / "last.pt"


@pytest.mark.usefixtures("_both_readers")
def test_what_is_intact_is_read(path: Path) -> None:
    assert DAMAGE["is_same"](read_tensors(path, "checkpoint"), content())


@pytest.mark.usefixtures("_both_readers")
@pytest.mark.parametrize("kind", ["bit", "zeros", "cut"])
def test_no_damaged_file_loads_with_other_content(kind: str, tmp_path: Path) -> None:
    generator, whole = random.Random(kind), RELEASED.read_bytes()
    original = read_tensors(RELEASED, "checkpoint")
    outcomes = Counter(
        DAMAGE["outcome"](DAMAGE["damaged"](whole, kind, generator), tmp_path / "f.pt", original)
        for _ in range(50)
    )
    assert outcomes["silently changed"] == 0
    assert outcomes["refused"] >= 48


@pytest.mark.usefixtures("_both_readers")
def test_the_damaged_record_and_the_intact_file_beside_it_are_named(path: Path) -> None:
    write_tensors(content(), path.with_name("best.pt"), "checkpoint")
    with zipfile.ZipFile(path) as archive:
        record = archive.getinfo("archive/data/1")
    changed = bytearray(path.read_bytes())
    changed[record.header_offset + 1000] ^= 4
    path.write_bytes(changed)
    with pytest.raises(
        CheckpointError,
        match=r"damaged or truncated \(its record 'data/1' of 8000 bytes is not what was written\)"
        r".*\. best\.pt beside it is intact; to go on from its step, copy it to last\.pt$",
    ):
        read_tensors(path, "checkpoint")
    path.with_name("best.pt").write_bytes(changed)
    with pytest.raises(CheckpointError, match=r"write it again$"):
        read_tensors(path, "checkpoint")


@pytest.mark.usefixtures("_both_readers")
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_records_that_pytorch_passes_over_are_checked(path: Path, method: int) -> None:
    with zipfile.ZipFile(path, "a", method) as archive:
        archive.writestr("archive/notes", "notes " * 50)
        place = archive.getinfo("archive/notes").header_offset
    assert read_tensors(path, "checkpoint")["step"] == 3
    changed = bytearray(path.read_bytes())
    changed[place + 50] ^= 1
    path.write_bytes(changed)
    with pytest.raises(CheckpointError, match="'notes'"):
        read_tensors(path, "checkpoint")


def test_a_file_of_old_pytorch_is_read(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save(content(), file, _use_new_zipfile_serialization=False)
    assert DAMAGE["is_same"](read_tensors(file, "weight file"), content())


def test_no_advice_to_let_files_run_code(tmp_path: Path) -> None:
    for data in (Path("a"), torch.nn.Linear(1, 1), random.Random(0)):
        torch.save(data, tmp_path / "f.pt")
        with pytest.raises(CheckpointError, match=r"it names [\w.]+\)") as caught:
            read_tensors(tmp_path / "f.pt", "checkpoint")
        assert "weights_only" not in str(caught.value)
        assert "\n" not in str(caught.value)
    (tmp_path / "f.pt").write_bytes(b"\x80\x02garbage")
    with pytest.raises(CheckpointError) as caught:
        read_tensors(tmp_path / "f.pt", "checkpoint")
    assert "weights_only" not in str(caught.value)


def test_memory_that_runs_out_is_no_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes")

    monkeypatch.setattr(torch, "load", exhausted)
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator") as caught:
        read_tensors(path, "checkpoint")
    assert not isinstance(caught.value, CheckpointError)
