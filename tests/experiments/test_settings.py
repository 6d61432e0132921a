from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from fewshot_blo.experiments.strategy import build_strategy
from small_runs import make_folder

from fewshot_blo.commands import main as cli
from fewshot_blo.experiments import training
from fewshot_blo.experiments.request import EvaluationRequest
from fewshot_blo.experiments.settings import Config, EpisodeSettings
from fewshot_blo.training.train import TrainResult


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data"), 12, 4)


@pytest.fixture
def parsed(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The settings that reach training from a command line."""

    def parse(*options: str) -> dict[str, Any]:
        seen: list[dict[str, Any]] = []

        def train(*args: Any, config: dict[str, Any], **options: Any) -> TrainResult:
            seen.append(config)
            assert options["settings"] == options["settings"].__class__(**config["train"])
            return TrainResult(tmp_path, 0, 0.0, False)

        monkeypatch.setattr(training, "train", train)
        data = [f"--data.root={folder}", "--data.name=folder", "--data.size=16"]
        episodes = ["--episodes.query=1", "--episodes.validation_query=2", "--episodes.way=2"]
        assert cli.main(["train", *options, *data, *episodes, "--test_tasks=0"]) == 0
        return seen[0]

    return parse


def printed(*options: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", *options, "--print_config"])
    assert stop.value.code == 0
    settings = yaml.safe_load(capsys.readouterr().out)
    return {name: settings[name] for name in asdict(Config())}


def test_the_defaults_of_the_command_line_are_those_of_the_settings(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert printed(capsys=capsys) == asdict(Config())


def test_settings_round_trip_through_yaml(tmp_path: Path, parsed: Any) -> None:
    file = tmp_path / "config.yaml"
    config = asdict(Config(episodes=EpisodeSettings(shot=(1, 2)), seed=3))
    config["problem"]["prox"] = 1e-3
    config["strategy"]["name"] = "penalty"
    file.write_text(yaml.safe_dump(config))
    first = parsed(f"--config={file}")
    for section in ("problem", "strategy", "inner", "adaptation", "train", "device", "seed"):
        assert first[section] == config[section]
    assert first["episodes"]["shot"] == (1, 2)
    file.write_text(yaml.safe_dump(first, sort_keys=False))
    assert parsed(f"--config={file}") == first


def test_options_beat_the_file(tmp_path: Path, parsed: Any) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("train:\n  steps: 7\n  learning_rate: 0.5\nseed: 4\n")
    config = parsed(f"--config={file}", "--train.steps=9")
    assert config["train"]["steps"] == 9
    assert config["train"]["learning_rate"] == 0.5
    assert config["seed"] == 4
    assert config["train"]["clip"] == Config().train.clip


def test_ranges(parsed: Any) -> None:
    assert parsed("--episodes.shot=[1,2]")["episodes"]["shot"] == (1, 2)
    assert parsed("--episodes.shot=2")["episodes"]["shot"] == 2


@pytest.mark.parametrize(
    ("option", "word"),
    [
        ("--train.stepz=3", "train.stepz"),
        ("--train.steps=1.5", "train.steps"),
        ("--train.learning_rate=fast", "train.learning_rate"),
        ("--train.schedule=linear", "train.schedule"),
        ("--episodes.way=[1,2,3]", "episodes.way"),
        ("--episodes.way=few", "episodes.way"),
        ("--problem.learn_prox=3", "problem.learn_prox"),
        ("--data.name=imagenet", "data.name"),
        ("--strategy.name=magic", "strategy.name"),
        ("--config=absent.yaml", "absent.yaml"),
    ],
)
def test_wrong_options(option: str, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", option]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.match(r"fewshot-blo train: .*\n\Z", captured.err)
    assert word in captured.err


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("train:\n  stepz: 3\n", "stepz"),
        ("colour: red\n", "colour"),
        ("train:\n  steps: many\n", "train.steps"),
        ("train: [\n", "config"),
        ("- 1\n", "config"),
    ],
)
def test_wrong_files(
    text: str, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    assert cli.main(["train", f"--config={file}"]) == 2
    error = capsys.readouterr().err
    assert re.match(r"fewshot-blo train: .*\n\Z", error)
    assert word in error


@pytest.mark.parametrize("value", ["3", "null", "[]"])
def test_a_section_that_is_none(
    value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"train: {value}\n")
    assert cli.main(["train", f"--config={file}"]) == 1
    assert "it must be a mapping of settings" in capsys.readouterr().err


def described(settings: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and the text of their docstrings."""
    text = inspect.getdoc(settings) or ""
    texts = dict(re.findall(r"^    (\w+): ((?:.|\n     )*)", text, re.MULTILINE))
    for field in fields(settings):
        if is_dataclass(default := getattr(settings, field.name)):
            yield from described(default, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", " ".join(texts[field.name].split())


@pytest.mark.parametrize(
    ("command", "settings"), [("train", Config()), ("evaluate", EvaluationRequest())]
)
def test_help_explains_every_setting(
    command: str,
    settings: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    words = " ".join(capsys.readouterr().out.split())
    for name, text in described(settings):
        assert re.search(rf"--{re.escape(name)} [^-]*? {re.escape(text)}", words), name


@pytest.mark.parametrize("name", ["unroll", "implicit", "penalty"])
def test_every_strategy_is_frozen_and_equal_by_its_settings(name: Any) -> None:
    config = Config(strategy=replace(Config().strategy, name=name))
    assert build_strategy(config) == build_strategy(config)
