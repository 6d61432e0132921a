"""Searches: repeatable, resumable, shared by workers, honest about what failed."""

from __future__ import annotations

import csv
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from documents import run_block
from small_runs import make_folder, write_recipe

from fewshot_blo import tune
from fewshot_blo.commands import main as cli
from fewshot_blo.errors import CheckpointError, ConfigurationError, DivergenceError
from fewshot_blo.experiments.recipes import read_recipe
from fewshot_blo.experiments.settings import Config
from fewshot_blo.experiments.tuning import results, store, trial
from fewshot_blo.experiments.tuning.claims import turn
from fewshot_blo.experiments.tuning.request import TuneRequest
from fewshot_blo.experiments.tuning.results import best_of
from fewshot_blo.experiments.tuning.search import Search
from fewshot_blo.experiments.tuning.space import Space
from fewshot_blo.experiments.tuning.store import JOURNAL, quiet
from fewshot_blo.experiments.tuning.tune import TuneResult
from fewshot_blo.experiments.tuning.work import read_search
from fewshot_blo.records.files import append_line
from fewshot_blo.records.quantity import ACCURACY
from fewshot_blo.tasks import Splits
from fewshot_blo.tasks.catalogue import Folder
from fewshot_blo.training.run import BEST, LAST
from fewshot_blo.training.train import TrainResult

pytest.importorskip("optuna")
SPACE = ("train.learning_rate=1e-4..1e-1:log", "strategy.inner.steps=1..4")
TRIALS = 3


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = make_folder(tmp_path_factory.mktemp("data"))
    path = tmp_path_factory.mktemp("recipes") / "small.yaml"
    return write_recipe(
        path, images, train__chunk=3, strategy__recompute="false", encoder__hidden=2
    )


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than all else; those of ``found`` are drawn."""
    monkeypatch.setattr("fewshot_blo.records.logs.draw_curves", lambda *arguments: None)
    monkeypatch.setattr("fewshot_blo.experiments.tuning.tune.draw_search", lambda *arguments: None)


@pytest.fixture
def instant(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training takes no time, and the accuracy is that of the learning rate: 0.9 at 0.03."""
    config = read_recipe(recipe)

    def changed(space: Space, values: Mapping[str, Any]) -> Config:
        rate = values.get("train.learning_rate", config.train.learning_rate)
        steps = space.base["train"]["steps"]
        return replace(config, train=replace(config.train, steps=steps, learning_rate=rate))

    monkeypatch.setattr(trial, "train_from_config", pretend)
    monkeypatch.setattr(Space, "config", changed)


def pretend(
    config: Config, splits: Any, folder: Path, *, validated: Any, **options: Any
) -> TrainResult:
    accuracy = 0.9 - abs(math.log10(config.train.learning_rate / 0.03)) / 5
    for step in range(1, config.train.steps + 1):
        record = {"step": step, "seconds": 0.1, "accuracy/validation": accuracy}
        append_line(folder / "log.jsonl", json.dumps(record))
        validated(step, SimpleNamespace(mean=accuracy))
    return TrainResult(folder / BEST, config.train.steps, ACCURACY, accuracy, False)


@pytest.fixture(scope="module")
def found(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> TuneResult:
    folder = tmp_path_factory.mktemp("search") / "found"
    return search(recipe, folder)


def search(recipe: Path, folder: Path, **options: Any) -> TuneResult:
    options = {"trials": TRIALS, "search": SPACE, "progress": False, **options}
    return tune(recipe, folder=folder, **options)


def told(rows: Any) -> list[str]:
    """The rows without what depends on the machine, as text, for NaN is not equal to itself."""
    return [str(replace(row, seconds=0.0)) for row in rows]


def validating(monkeypatch: pytest.MonkeyPatch, act: Callable[[int, int], None]) -> None:
    """Calls ``act(trial, step)`` at each validation of a trial."""

    def train(config: Config, splits: Any, folder: Path, **options: Any) -> Any:
        validated = options.pop("validated")

        def both(step: int, result: Any) -> None:
            validated(step, result)
            act(int(folder.name), step)

        return before(config, splits, folder, validated=both, **options)

    before: Any = vars(trial)["train_from_config"]
    monkeypatch.setattr(trial, "train_from_config", train)


class Killed(BaseException):
    """Ends a process without a word; its locks end with it."""


def test_the_recipe_is_trial_0_and_the_best_is_no_worse(found: TuneResult, recipe: Path) -> None:
    assert [row.number for row in found.rows] == list(range(TRIALS))
    assert all(row.state == "complete" and row.steps == 2 for row in found.rows)
    config = read_recipe(recipe)
    assert found.rows[0].values == {
        "train.learning_rate": config.train.learning_rate,
        "strategy.inner.steps": 2,
    }
    assert len({str(row.values) for row in found.rows}) == TRIALS
    best = best_of(ACCURACY, found.rows)
    assert best is not None
    assert best.value == max(row.value for row in found.rows)
    assert f"trial {best.number}, " in repr(found)


def test_the_best_recipe_trains_to_the_same_accuracy(
    found: TuneResult, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = best_of(ACCURACY, found.rows)
    assert best is not None
    whole, config = read_recipe(recipe).plain(), read_recipe(found.best).plain()
    whole["train"]["learning_rate"] = best.values["train.learning_rate"]
    whole["strategy"]["inner"]["steps"] = best.values["strategy.inner.steps"]
    assert config == whole
    words = ["train", f"--config={found.best}", f"--run={tmp_path / 'run'}", "--test_tasks=0"]
    assert cli.main(words) == 0
    assert f"accuracy {100 * best.value:.2f} %" in capsys.readouterr().out


def test_files_of_a_search(found: TuneResult) -> None:
    folder, best = found.best.parent, best_of(ACCURACY, found.rows)
    assert best is not None
    with (folder / "table.csv").open(encoding="utf-8") as file:
        records = list(csv.DictReader(file))
    assert [float(r["validation accuracy"]) for r in records] == [
        100 * row.value for row in found.rows
    ]
    text = (folder / "table.md").read_text()
    assert "optimistic" in text
    assert f"best.yaml --seeds 1 2 3 --folder {folder / 'compare'}" in text
    assert (folder / "search.png").stat().st_size > 10_000
    for row in found.rows:
        run = folder / "trials" / f"{row.number:03}"
        assert (run / "log.jsonl").is_file()
        assert (run / BEST).exists() == (run / LAST).exists() == (row is best)


def test_one_worker_repeats_a_search(found: TuneResult, recipe: Path, tmp_path: Path) -> None:
    again = search(recipe, tmp_path, keep=True, trials=2)
    assert told(again.rows) == told(found.rows)[:2]
    assert all((tmp_path / "trials" / f"{n:03}" / BEST).exists() for n in range(2))


def test_a_search_is_of_its_seed_and_grows(
    instant: None, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "_ENOUGH", 5)
    whole = search(recipe, tmp_path / "whole", trials=6)
    search(recipe, tmp_path / "grown", trials=3)
    assert told(search(recipe, tmp_path / "grown", trials=6).rows) == told(whole.rows)
    other = search(recipe, tmp_path / "other", seed=1, trials=2)
    assert other.rows[0].values == whole.rows[0].values
    assert other.rows[1].values != whole.rows[1].values
    best = best_of(ACCURACY, whole.rows)
    assert best is not None
    assert best.value > 0.8  # The recipe has 0.6.
    text = (tmp_path / "whole" / "table.md").read_text()
    assert "Importance of the settings (PED-ANOVA): train.learning_rate" in text


@pytest.mark.slow
def test_a_killed_and_interrupted_search_goes_on_as_if_it_never_was(
    found: TuneResult, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[int, int]] = []

    def act(number: int, step: int) -> None:
        begun.append((number, step))
        if begun.count((1, 1)) == 1 and (number, step) == (1, 1):
            raise Killed
        if (number, step) == (2, 1) and begun.count((2, 1)) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    validating(monkeypatch, act)
    with pytest.raises(Killed):
        search(recipe, tmp_path)
    words = ["tune", str(recipe), f"--folder={tmp_path}", f"--trials={TRIALS}", "--search", *SPACE]
    assert cli.main(words) == 130
    assert cli.main(words) == 0
    assert begun == [(0, 1), (0, 2), (1, 1), (1, 2), (2, 1), (2, 2)]
    again = search(recipe, tmp_path)  # Nothing is left to do.
    assert told(again.rows) == told(found.rows)


def test_a_trial_that_kills_its_workers_has_failed(
    instant: None, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def act(number: int, step: int) -> None:
        if number == 1:
            raise Killed

    validating(monkeypatch, act)
    for _ in range(3):
        with pytest.raises(Killed):
            search(recipe, tmp_path, trials=2)
    rows = search(recipe, tmp_path, trials=2).rows
    assert [row.state for row in rows] == ["complete", "failed"]
    assert "its process ended 3 times without a word" in rows[1].reason


def test_failed_trials_are_told_and_the_search_goes_on(recipe: Path, tmp_path: Path) -> None:
    # There are ten classes, and three for validation.
    ways = ["episodes.way=3,50,60"]
    result = search(recipe, tmp_path, search=ways, trials=4)
    failed = [row for row in result.rows if row.state == "failed"]
    assert failed
    assert all("this split has 10" in row.reason for row in failed), failed
    assert result.rows[0].state == "complete"
    assert failed[0].reason in (tmp_path / "table.md").read_text()


def test_if_all_fail_the_first_reason_is_the_error(
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reasons = iter([DivergenceError("it grew\nand grew"), torch.OutOfMemoryError("CUDA is full")])

    def fail(*arguments: Any, **options: Any) -> None:
        raise next(reasons)

    monkeypatch.setattr(trial, "train_from_config", fail)
    words = ["tune", str(recipe), f"--folder={tmp_path}", "--trials=2"]
    assert cli.main(words) == 1
    captured = capsys.readouterr()
    assert captured.err == "fewshot-blo tune: all 2 trials failed; trial 0: it grew\n"
    assert "failed: CUDA is full" in captured.out
    assert not (tmp_path / "best.yaml").exists()


@pytest.mark.parametrize(("pruner", "trials"), [("median", 5), ("hyperband", 5), ("none", 3)])
def test_bad_trials_end_early_and_the_recipe_does_not(
    pruner: Any,
    trials: int,
    instant: None,
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(store, "_BEFORE_PRUNING", 1)
    result = search(recipe, tmp_path, trials=trials, pruner=pruner, progress=True)
    pruned = [row for row in result.rows if row.state == "pruned"]
    assert bool(pruned) == (pruner != "none")
    assert all(row.steps == 1 for row in pruned)
    assert result.rows[0].state == "complete"
    out = capsys.readouterr().out
    assert ("pruned after 1 steps at" in out) == bool(pruned)
    assert "ends early" not in out


def test_a_search_without_early_validations_says_so(
    instant: None, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search(recipe, tmp_path, trials=1, max_steps=1, progress=True)
    out = capsys.readouterr().out
    assert "no trial ends early: its only validation is the last one" in out
    assert "--seeds 1 2 3 --max_steps 1 --folder" in out


def test_test_tasks_are_not_drawn(
    found: TuneResult, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Folder.load

    def without(data: Folder) -> Splits:
        splits = load(data)
        object.__setattr__(splits, "test", None)
        return splits

    monkeypatch.setattr(Folder, "load", without)
    assert told(search(recipe, tmp_path, trials=1).rows) == told(found.rows)[:1]


def test_trials_in_a_database(
    instant: None, found: TuneResult, recipe: Path, tmp_path: Path
) -> None:
    address = f"sqlite:///{tmp_path}/trials.db"
    result = search(recipe, tmp_path / "found", storage=address, pruner="hyperband")
    assert [row.values for row in result.rows] == [row.values for row in found.rows]
    with pytest.raises(ConfigurationError, match="does not have the trials of"):
        search(recipe, tmp_path / "other" / "found", storage=address)
    with pytest.raises(ConfigurationError, match=r"redis://h/0 cannot be opened") as caught:
        search(recipe, tmp_path / "third", storage="redis://user:secret@h/0")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("user:secret@h", "storage h cannot be opened (Could not parse SQLAlchemy URL"),
        ("redis://user:secret@h/0", "storage redis://h/0 cannot be opened (Can't load plugin"),
        ("sqlite:///{}/no/x.db", "x.db cannot be opened ((sqlite3.OperationalError) unable"),
        ("sqlite:///{}/text", "text cannot be opened ((sqlite3.DatabaseError) file is not a"),
        ("sqlite://", "storage sqlite:// cannot be opened (without a file it would end with its"),
        ("sqlite:///:memory:", "cannot be opened (without a file it would end with its process"),
    ],
)
def test_a_storage_that_fails_leaves_nothing_behind(
    address: str, said: str, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text("no database, and longer than the header of one\n" * 9)
    folder = tmp_path / "new" / "search"
    words = ["tune", str(recipe), f"--folder={folder}", f"--storage={address.format(tmp_path)}"]
    assert cli.main(words) == 1
    out, err = capsys.readouterr()
    assert said in err
    assert (out, err.count("\n")) == ("", 1)
    assert "secret" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["text"]
    folder.mkdir(parents=True)  # What was there stays.
    assert cli.main(words) == 1
    assert list(folder.iterdir()) == []


def test_a_database_that_cannot_be_reached(
    instant: None, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> None:
        raise ConnectionRefusedError(111, "Connection refused")

    address = f"sqlite:///{tmp_path}/trials.db"
    with monkeypatch.context() as patch:
        patch.setattr(store, "_database", refuse)
        with pytest.raises(ConfigurationError, match=r"trials\.db cannot be opened .*refused"):
            search(recipe, tmp_path / "search", storage=address)
    assert list(tmp_path.iterdir()) == []
    # Once it can be, the same call begins.
    assert len(search(recipe, tmp_path / "search", storage=address).rows) == TRIALS


def test_who_waits_for_the_turn_of_a_worker_that_fails_makes_the_folder_anew(
    tmp_path: Path,
) -> None:
    folder, begun = tmp_path / "new" / "search", threading.Event()

    def fail() -> None:
        with turn(folder):
            begun.set()
            time.sleep(0.3)
            raise ValueError

    with ThreadPoolExecutor(2) as threads:
        failed = threads.submit(fail)
        assert begun.wait(60)
        with turn(folder):
            (folder / "written").touch()
        with pytest.raises(ValueError):  # noqa: PT011
            failed.result()
    assert {path.name for path in folder.iterdir()} == {".turn.lock", "written"}


def test_a_folder_of_another_search_is_refused(
    found: TuneResult, recipe: Path, tmp_path: Path
) -> None:
    folder = found.best.parent
    cases: list[tuple[dict[str, Any], str]] = [
        ({"seed": 1}, "a search with seed 0, and this is seed 1"),
        ({"search": ["train.learning_rate"]}, r"another space \(train\.learning_rate=0\.0001"),
        ({"max_steps": 1}, r"another recipe \(train differ"),
        ({"jobs": 10**6}, "jobs is 1000000: it must be at most"),
    ]
    for other, said in cases:
        with pytest.raises(ConfigurationError, match=said):
            search(recipe, folder, **other)
    changed = tmp_path / "small.yaml"
    changed.write_text(f"{recipe.read_text()}\nstart_from: other.yaml\n")
    with pytest.raises(ConfigurationError, match=r"start_from is the recipe other\.yaml: train it"):
        search(changed, tmp_path / "new")


def test_a_damaged_journal(instant: None, recipe: Path, tmp_path: Path) -> None:
    search(recipe, tmp_path, trials=1)
    journal = tmp_path / JOURNAL
    content = journal.read_bytes()
    journal.write_bytes(content + b'{"op_code":4,"worker')  # A disk that was full.
    assert len(search(recipe, tmp_path, trials=2).rows) == 2
    lines = content.splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:2], b"nonsense\n", *lines[2:]]))
    with pytest.raises(CheckpointError, match=f"{JOURNAL} is damaged") as caught:
        search(recipe, tmp_path, trials=2)
    assert "\n" not in str(caught.value)
    journal.unlink()
    with pytest.raises(ConfigurationError, match="does not have the trials"):
        search(recipe, tmp_path, trials=2)


@pytest.mark.parametrize("storage", ["", "sqlite:///{}/trials.db"])
def test_nothing_of_a_storage_is_unpickled(
    storage: str, instant: None, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("it unpickles")

    address = storage.format(tmp_path)
    search(recipe, tmp_path / "search", trials=1, storage=address)
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(trial, "train_from_config", refuse)  # There is nothing to train.
    assert len(search(recipe, tmp_path / "search", trials=1, storage=address).rows) == 1


def test_without_optuna_the_command_says_how_to_install_it(
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert cli.main(["tune", str(recipe), f"--folder={tmp_path / 'x'}"]) == 1
    error = capsys.readouterr().err
    install = "pip install '.[tune]' in a checkout of fewshot_blo"
    assert error == f"fewshot-blo tune: optuna is not installed: {install}\n"
    assert not (tmp_path / "x").exists()


def test_optuna_keeps_its_own_log_level() -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.INFO)
    with quiet():
        assert optuna.logging.get_verbosity() == optuna.logging.ERROR
    assert optuna.logging.get_verbosity() == optuna.logging.INFO


def test_if_all_workers_are_killed_the_command_says_so(
    instant: None, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin_one(make: Any, *arguments: Any, goes_on: bool, **options: Any) -> Iterator[Any]:
        assert goes_on
        request = make.args[0]
        _, space = read_search(request)
        claim = Search(request, space).claim()
        assert claim is not None
        claim.lock.close()
        return iter([])

    monkeypatch.setattr("fewshot_blo.experiments.tuning.tune.run_jobs", begin_one)
    with pytest.raises(CheckpointError, match="0 of 3 trials have ended, and workers were killed"):
        search(recipe, tmp_path, jobs=2)
    assert "unfinished" in (tmp_path / "table.md").read_text()
    assert [row.state for row in search(recipe, tmp_path).rows] == ["complete"] * 3


@pytest.mark.slow
def test_two_workers_share_a_search(
    recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = search(recipe, tmp_path, trials=4, jobs=2, progress=True)
    assert [row.state for row in result.rows] == ["complete"] * 4
    assert result.rows[0].values["strategy.inner.steps"] == 2
    assert not result.interrupted
    lines = capfd.readouterr().out.splitlines()
    assert sum(line.startswith("trial ") and " of 4: " in line for line in lines) == 4


_COMMAND = "import sys; from fewshot_blo.commands.main import main; sys.exit(main(sys.argv[1:]))"


def jobs_of(process: int) -> list[int]:
    """The children of a process."""
    found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(child) for child in found]


def until(is_so: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_job_leaves_its_trial_to_the_other_and_ctrl_c_saves(
    recipe: Path, tmp_path: Path
) -> None:
    long = tmp_path / "long.yaml"
    settings = yaml.safe_load(recipe.read_text())
    settings["train"] |= {"steps": 10**6, "validate_every": 20}
    long.write_text(yaml.safe_dump(settings))
    words = ["tune", long, f"--folder={tmp_path / 'search'}", "--jobs=2", "--search", *SPACE]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(
        [sys.executable, "-c", _COMMAND, *map(str, words), "--trials=2"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as command:
        runs = [tmp_path / "search" / "trials" / name for name in ("000", "001")]
        until(lambda: all((run / LAST).exists() for run in runs))
        first, second = jobs_of(command.pid)
        os.kill(first, signal.SIGKILL)
        until(lambda: jobs_of(command.pid) == [second])
        os.kill(command.pid, signal.SIGINT)
        out, _ = command.communicate(timeout=60)
    assert command.returncode == 130
    assert "was killed (SIGKILL)" in out
    assert "0 of 2 trials have ended: the same command goes on" in out
    with pytest.raises(ProcessLookupError):
        os.kill(second, 0)
    request = TuneRequest(recipe=long, folder=tmp_path / "search", trials=2, search=SPACE)
    with quiet():
        _, space = read_search(request)
        tries = [trial.user_attrs["tries"] for trial in Search(request, space).trials()]
    assert sorted(tries) == [0, 1]  # The second trial was left, the first one was not.


def test_the_page_runs(
    recipe: Path,
    instant: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    copy = tmp_path / "runs" / "a" / "config.yaml"
    copy.parent.mkdir(parents=True)
    copy.write_text(recipe.read_text())
    rows = run_block("docs/guides/tuning.md", 0)["result"].rows
    assert len(rows) == 20
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{rows[-1].number} ")
