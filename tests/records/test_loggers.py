from __future__ import annotations

import csv
import importlib
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from small_runs import SETTINGS, SignallingSampler, log_records, run

from fewshot_blo import PlainProblem, TrainSettings, Unroll, solve
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.kernel import SGD, InnerSteps
from fewshot_blo.records.loggers import (
    CSV,
    LoggedRun,
    Logger,
    MLflow,
    WeightsAndBiases,
    guarded,
)
from fewshot_blo.records.loggers.named import built, check_names
from fewshot_blo.records.logs import LOG, RunLog, read_log

SAVED = {"train": {"steps": 9, "rates": {"head": 0.5}}, "device": "cpu"}


def records(first: int, last: int) -> list[dict[str, Any]]:
    """Two of every second step, as where it is validated."""
    found: list[dict[str, Any]] = []
    for step in range(first, last + 1):
        found.append({"step": step, "loss/outer": 2.0 / step, "word": "x", "seconds": step / 2})
        if step % 2 == 0:
            found.append({"step": step, "accuracy/validation": 0.5, "seconds": step / 2})
    return found


def log(folder: Path, first: int, last: int, *loggers: Logger) -> None:
    with RunLog(folder, step=first - 1, loggers=loggers, settings=SAVED) as own:
        for record in records(first, last):
            own.write(record)


class Recorder:
    """A logger of one's own, which fails in the call of this number."""

    def __init__(self, fails: int = -1, kind: type[BaseException] = ConnectionError) -> None:
        self.fails, self.kind, self.calls = fails, kind, list[Any]()

    def start(self, run: LoggedRun) -> None:
        self._call(run)

    def write(self, record: Mapping[str, Any]) -> None:
        self._call(dict(record))

    def close(self) -> None:
        self._call("closed")

    def _call(self, what: Any) -> None:
        self.calls.append(what)
        if len(self.calls) == self.fails:
            raise self.kind("the server\nis gone")


class Blocking(Recorder):
    """A logger whose server does not answer in the call of this number until it is released."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.blocks, self.released = blocks, threading.Event()

    def _call(self, what: Any) -> None:
        super()._call(what)
        if len(self.calls) == self.blocks:
            self.released.wait(60)


def table(folder: Path, name: str = "log.csv") -> list[dict[str, str]]:
    with (folder / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def has_rows(folder: Path, rows: list[dict[str, Any]]) -> bool:
    return table(folder) == as_text(rows)


def wait_for(seen: Callable[[], bool]) -> None:
    """Loggers write in a thread of their own."""
    for _ in range(2000):
        if seen():
            return
        time.sleep(0.005)
    raise AssertionError("not seen within 10 s")


def as_text(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: str(row.get(name, "")) for name in columns} for row in rows]


def test_a_table_with_columns_that_come_later(tmp_path: Path) -> None:
    logger = CSV()
    with RunLog(tmp_path, step=0, loggers=(logger,)) as own:
        for number, record in enumerate(records(1, 4), 1):
            own.write(record)
            wait_for(partial(has_rows, tmp_path, records(1, 4)[:number]))
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_resumed_table_has_no_row_twice(tmp_path: Path) -> None:
    log(tmp_path, 1, 7, CSV("table.csv"))
    log(tmp_path, 5, 9, CSV("table.csv"))
    assert table(tmp_path, "table.csv") == as_text(records(1, 9))
    # One that comes later, and one that was removed during the run.
    log(tmp_path, 10, 10, CSV())
    assert table(tmp_path) == as_text(records(1, 10))
    with RunLog(tmp_path, step=10, loggers=(CSV(),)) as own:
        (tmp_path / "log.csv").unlink()  # It was written before the first record.
        own.write(records(11, 11)[0])
    assert table(tmp_path) == as_text(records(1, 11))


@pytest.mark.parametrize("name", ["", "a/b.csv", "..", "/tmp/log.csv"])
def test_a_table_stays_in_its_folder(name: str) -> None:
    with pytest.raises(ConfigurationError, match="name of a file"):
        CSV(name)


def test_a_logger_of_ones_own_is_told_of_the_run(tmp_path: Path) -> None:
    log(tmp_path, 1, 5)
    own = Recorder()
    log(tmp_path, 4, 6, own)
    told = LoggedRun(tmp_path, SAVED, 3, tuple(records(1, 3)))
    assert own.calls == [told, *records(4, 6), "closed"]


@pytest.mark.parametrize("kind", [ConnectionError, SystemExit])
@pytest.mark.parametrize(("fails", "call"), [(1, "start"), (3, "write"), (9, "close")])
def test_a_logger_that_fails_is_left_out(
    tmp_path: Path, fails: int, call: str, kind: type[BaseException]
) -> None:
    failing, other = Recorder(fails, kind), Recorder()
    message = rf"Recorder failed \({kind.__name__} in {call}: the server is gone\)"
    with pytest.warns(UserWarning, match=message) as warned:
        log(tmp_path, 1, 5, failing, other)
    assert len(warned) == 1
    assert len(failing.calls) == fails
    assert len(other.calls) == 9
    assert read_log(tmp_path / LOG) == records(1, 5)


def test_a_run_goes_on_without_a_logger_that_fails(tmp_path: Path) -> None:
    failing = Recorder(4)
    with pytest.warns(UserWarning, match="goes on without it"):
        result = run(tmp_path, loggers=[failing])
    assert len(failing.calls) == 4
    assert result.step == SETTINGS.steps
    assert len(log_records(tmp_path)) == 9


@pytest.mark.parametrize(("blocks", "call"), [(1, "started"), (4, "ended write")])
def test_a_logger_that_blocks_does_not_hold_up_the_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    blocks: int,
    call: str,
) -> None:
    monkeypatch.setattr(guarded, "_START_SECONDS" if blocks == 1 else "_CLOSE_SECONDS", 0.2)
    monkeypatch.setattr(guarded, "_SILENT_SECONDS", 0.1)
    blocking, other = Blocking(blocks), Recorder()
    with pytest.warns(UserWarning, match=f"Blocking failed.*has not {call} within") as warned:
        log(tmp_path, 1, 5, blocking, other)
    assert len(warned) == 1
    said = "the run is saved; waiting up to 0 s for the logger Blocking to end"
    assert (said in capsys.readouterr().err) == (call == "ended write")
    assert len(blocking.calls) == blocks
    assert other.calls[-1] == "closed"
    assert read_log(tmp_path / LOG) == records(1, 5)
    blocking.released.set()  # It closes when it answers after all.
    wait_for(lambda: blocking.calls[-1] == "closed")


def test_settings_that_do_not_suit_end_the_run_before_its_first_step(tmp_path: Path) -> None:
    other = Recorder()
    with pytest.raises(ConfigurationError, match="is gone"):
        run(tmp_path, loggers=[other, Recorder(1, ConfigurationError)])
    assert other.calls[1:] == ["closed"]
    assert log_records(tmp_path) == []


def test_a_logger_cannot_change_the_log(tmp_path: Path) -> None:
    class Renaming(Recorder):
        def start(self, run: LoggedRun) -> None:
            for record in run.records:
                dict.clear(record)  # type: ignore[arg-type]

        def write(self, record: Mapping[str, Any]) -> None:
            dict.clear(record)  # type: ignore[arg-type]

    log(tmp_path, 1, 2, Renaming())
    log(tmp_path, 3, 4, Renaming())
    assert read_log(tmp_path / LOG) == records(1, 4)


@pytest.mark.slow
def test_a_run_logs_as_its_settings_say_and_resumes(tmp_path: Path) -> None:
    chosen = TrainSettings(**{**vars(SETTINGS), "loggers": ("CSV",)})
    first = Recorder()
    signalled = SignallingSampler(3, 15)
    assert run(tmp_path, settings=chosen, tasks=signalled, loggers=[first]).interrupted
    assert first.calls[-1] == "closed"
    assert len(table(tmp_path)) < 9
    own = Recorder()
    run(tmp_path, settings=chosen, resume=True, loggers=(own,))
    assert own.calls[-1] == "closed"
    steps = [str(record["step"]) for record in read_log(tmp_path / LOG)]
    assert [row["step"] for row in table(tmp_path)] == steps == list("122344566")
    assert own.calls[0].settings["train"]["steps"] == SETTINGS.steps
    # A run may go on with others.
    assert not run(tmp_path, resume=True).interrupted


def test_solve_logs_too(tmp_path: Path) -> None:
    def loss(v: Any, u: Any) -> torch.Tensor:
        return torch.as_tensor(((v["v"] - u["u"]) ** 2).sum())

    def problem() -> PlainProblem:
        start = {"u": torch.ones(2)}, {"v": torch.zeros(2)}
        return PlainProblem(*start, inner_loss=loss, outer_loss=loss)

    own, method = Recorder(), Unroll(InnerSteps(1, SGD(0.5)))
    options: dict[str, Any] = {"steps": 2, "every": 1, "progress": False, "loggers": (own,)}
    solve(problem(), method, folder=tmp_path, **options)
    assert own.calls[0].settings["steps"] == 2
    assert [call["step"] for call in own.calls[1:-1]] == [1, 2]
    with pytest.raises(ConfigurationError, match="name the folder"):
        solve(problem(), method, **options)


def test_loggers_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_logger.py").write_text(
        "class Own:\n"
        "    def __init__(self, word='a'): self.word = word\n"
        "    def start(self, run): pass\n"
        "    def write(self, record): pass\n"
        "    def close(self): pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    table, own = built([{"name": "CSV", "file": "a.csv"}, {"name": "own_logger:Own", "word": "b"}])
    assert table == CSV("a.csv")
    assert vars(own) == {"word": "b"}
    for wrong, message in (
        ("csv", r"did you mean CSV\?"),
        ("MLFlow", r"did you mean MLflow\?"),
        ({"name": "CSV", "fil": "a"}, r"has no setting 'fil' \(did you mean file\?\)"),
        ({"file": "a"}, "has no name"),
        ({"name": "CSV", "file": 3}, "file is 3"),
        ("own_logger:Missing", "cannot be created"),
        ("no_such_module:A", "cannot be created"),
        ("pathlib:Path", "without close, start, write"),
    ):
        with pytest.raises(ConfigurationError, match=message) as error:
            built([wrong])
        assert "\n" not in str(error.value)
    with pytest.raises(ConfigurationError, match="no such logger"):
        TrainSettings(loggers=("TensorBord",))


@pytest.mark.parametrize(("kind", "package"), [(WeightsAndBiases, "wandb"), (MLflow, "mlflow")])
def test_a_missing_package_is_one_line(
    kind: Any, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError) as error:
        kind()
    remedy = f"pip install '.[{package}]' in a checkout of fewshot_blo"
    assert str(error.value) == f"{kind.__name__} needs the package {package}: {remedy}"
    check_names([kind.__name__])  # A run's settings can be read without it.


class FakeRun:
    """What is sent to one run of Weights & Biases."""

    def __init__(self, **options: Any) -> None:
        self.options, self.sent, self.finished = options, list[tuple[int, dict[str, float]]](), 0

    def log(self, values: dict[str, float], step: int) -> None:
        self.sent.append((step, values))

    def finish(self) -> None:
        self.finished += 1


def test_weights_and_biases_gets_no_point_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, runs = ModuleType("wandb"), list[FakeRun]()

    def init(**options: Any) -> FakeRun:
        runs.append(FakeRun(**options))
        return runs[-1]

    fake.__dict__["Settings"] = dict
    fake.__dict__["init"] = init
    fake.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    log(tmp_path, 1, 7, WeightsAndBiases(project="a", mode="offline"))
    log(tmp_path, 5, 9, WeightsAndBiases(project="a", mode="offline"))
    first, second = runs
    assert first.options["id"] == second.options["id"]
    assert first.options["config"] == SAVED
    assert (first.options["project"], first.options["mode"]) == ("a", "offline")
    assert [run.finished for run in runs] == [1, 1]
    numbers = [
        (r["step"], {n: x for n, x in r.items() if n not in ("step", "word")})
        for r in records(1, 9)
    ]
    assert first.sent + second.sent == numbers
    (tmp_path / "wandb_run.json").write_text("{")  # Then it is another run, with all records.
    log(tmp_path, 10, 10, WeightsAndBiases())
    assert runs[2].options["id"] != first.options["id"]
    assert len(runs[2].sent) == len(records(1, 10))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Packages warn of each other.
def test_the_package_wandb_writes_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    log(tmp_path, 1, 5, WeightsAndBiases(mode="offline"))
    log(tmp_path, 4, 6, WeightsAndBiases(mode="offline"))
    found = sent(tmp_path)
    assert [(int(r["_step"]), r.get("loss/outer")) for r in found] == [
        (step, 2.0 / step) for step in range(1, 7)
    ]
    assert [r["accuracy/validation"] for r in found if r["_step"] % 2 == 0] == [0.5] * 3


def sent(folder: Path) -> list[dict[str, Any]]:
    """The rows that offline runs have, oldest run first."""
    messages: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    rows, ids = [], set()
    paths = folder.glob("wandb/offline-run-*/run-*.wandb")
    for path in sorted(paths, key=lambda path: path.stat().st_mtime):
        # A log as of LevelDB, of one block: checksum (4), length (2), type (1) and content.
        data, place = path.read_bytes(), 7
        assert data[:4] == b":W&B"
        assert len(data) < 2**15
        while place < len(data):
            length = int.from_bytes(data[place + 4 : place + 6], "little")
            content = data[place + 7 : place + 7 + length]
            place += 7 + length
            message = messages.Record()
            message.ParseFromString(content)
            if message.HasField("run"):
                ids.add(message.run.run_id)
            if message.HasField("history"):
                items = message.history.item
                row = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
                rows.append({"_step": message.history.step.num, **row})
    assert len(ids) == 1
    return rows


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Packages warn of each other.
def test_the_package_mlflow_keeps_one_run(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    log(tmp_path, 1, 7, MLflow())
    log(tmp_path, 5, 9, MLflow())
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "fewshot_blo"]
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params == {"train.steps": "9", "train.rates.head": "0.5", "device": "cpu"}
    history = client.get_metric_history(found.info.run_id, "loss/outer")
    assert [(m.step, m.value) for m in history] == [(s, 2.0 / s) for s in range(1, 10)]
    for name, steps in (("seconds", range(1, 10)), ("accuracy/validation", range(2, 10, 2))):
        history = client.get_metric_history(found.info.run_id, name)
        assert [m.step for m in history] == list(steps)


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "guides" / "loggers.md"
    own, used = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "milestones.py").write_text(own)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    exec(compile(used, str(page), "exec"), {})
    assert len(table(tmp_path / "runs" / "a")) == 2
    (logger,) = built(["milestones:Milestones"])
    logger.start(LoggedRun(tmp_path, {}))
    logger.write({"step": 1, "accuracy/validation": 0.5})
    logger.close()
    assert (tmp_path / "milestones.txt").read_text() == "step 1: 0.5\n"
