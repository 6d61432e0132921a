from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fewshot_blo.records import logs
from fewshot_blo.records.events import Events
from fewshot_blo.records.logs import CURVES, LOG, RunLog, read_log
from fewshot_blo.records.training_curves import draw_curves


def record(step: int) -> dict[str, object]:
    return {"step": step, "loss/outer": 2.0 / step, "accuracy/train": 1 - 1 / step, "word": "x"}


def write(folder: Path, first: int, last: int) -> None:
    with RunLog(folder, step=first - 1) as log:
        for step in range(first, last + 1):
            log.write(record(step))


def test_json_lines_picture_and_events(tmp_path: Path) -> None:
    write(tmp_path, 1, 5)
    lines = (tmp_path / LOG).read_text().splitlines()
    assert [json.loads(line) for line in lines] == [record(step) for step in range(1, 6)]
    with Image.open(tmp_path / CURVES) as picture:
        picture.load()
        assert picture.format == "PNG"
        assert min(picture.size) > 300
    assert event_steps(tmp_path) == [1, 2, 3, 4, 5]
    assert not list(tmp_path.glob(".*.tmp"))


def event_steps(folder: Path) -> list[int]:
    accumulator = EventAccumulator(str(folder / "tensorboard"))
    accumulator.Reload()
    assert set(accumulator.Tags()["scalars"]) == {"loss/outer", "accuracy/train"}
    return [event.step for event in accumulator.Scalars("loss/outer")]


def test_records_are_on_the_disk_at_once(tmp_path: Path) -> None:
    with RunLog(tmp_path, step=0) as log:
        log.write(record(1))
        assert read_log(tmp_path / LOG) == [record(1)]


def test_a_resumed_log_reads_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    write(tmp_path, 1, 7)
    write(tmp_path, 5, 9)
    assert read_log(tmp_path / LOG) == [record(step) for step in range(1, 10)]
    assert event_steps(tmp_path) == list(range(1, 10))


@pytest.mark.parametrize("tail", ['{"step": 4, "lo', '{"step"', "{", "\x00\x00\x00", "\ufffd"])
def test_a_last_line_cut_short(tmp_path: Path, tail: str) -> None:
    write(tmp_path, 1, 3)
    with (tmp_path / LOG).open("a") as file:
        file.write(tail)
    assert read_log(tmp_path / LOG) == [record(step) for step in (1, 2, 3)]
    write(tmp_path, 4, 4)
    assert [r["step"] for r in read_log(tmp_path / LOG)] == [1, 2, 3, 4]


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    write(tmp_path, 1, 2)
    with (tmp_path / LOG).open("ab") as file:
        file.write(b"\xff\xfe\x80")
    assert len(read_log(tmp_path / LOG)) == 2


def test_no_log(tmp_path: Path) -> None:
    assert read_log(tmp_path / LOG) == []
    draw_curves([], tmp_path / CURVES)
    with Image.open(tmp_path / CURVES) as picture:
        picture.load()


def test_a_failing_picture_does_not_hide_the_error_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(logs, "draw_curves", full)
    with pytest.raises(ZeroDivisionError), RunLog(tmp_path / "a", step=0):
        raise ZeroDivisionError
    with pytest.raises(OSError, match="No space left"), RunLog(tmp_path / "b", step=0):
        pass


@pytest.mark.parametrize(
    "lines", [["{}"], ["5"], ["[]"], ['{"step": "x"}'], ["\x00\x01", '{"step": 3, "loss": 1}']]
)
def test_a_log_with_other_lines_is_set_aside(lines: list[str], tmp_path: Path) -> None:
    write(tmp_path, 1, 2)
    with (tmp_path / LOG).open("a") as file:
        file.writelines(f"{line}\n" for line in lines)
    before = (tmp_path / LOG).read_bytes()
    with pytest.warns(UserWarning, match=r"kept as log\.jsonl\.damaged-1, and the run goes on"):
        write(tmp_path, 4, 4)
    assert (tmp_path / f"{LOG}.damaged-1").read_bytes() == before
    steps = [r["step"] for r in read_log(tmp_path / LOG)]
    assert [step for step in steps if step != 3] == [1, 2, 4]
    (tmp_path / LOG).write_text("5\n")
    with pytest.warns(UserWarning, match=r"damaged-2"):
        write(tmp_path, 5, 5)


def test_a_log_that_is_removed_is_written_again(tmp_path: Path) -> None:
    with RunLog(tmp_path, step=0) as log:
        log.write(record(1))
        log.flush()
        shutil.rmtree(tmp_path)
        log.write(record(2))
    assert read_log(tmp_path / LOG) == [record(1), record(2)]
    assert event_steps(tmp_path) == [1, 2]


def test_events_on_a_full_disk_are_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(events: Events, event: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with RunLog(tmp_path, step=0) as log:
        log.write({"step": 1, "loss/outer": 1.0})
        with monkeypatch.context() as patch:
            patch.setattr(Events, "_write", fail)
            with pytest.raises(OSError, match=r"cannot write the log .*free disk space"):
                log.write({"step": 2, "loss/outer": 1.0})
