from __future__ import annotations

import inspect
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_runs import make_folder

from fewshot_blo.commands import main as cli
from fewshot_blo.commands.help import descriptions
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.experiments import training
from fewshot_blo.experiments.recipes import read_recipe
from fewshot_blo.experiments.request import EvaluationRequest
from fewshot_blo.experiments.settings import (
    SLOTS,
    Config,
    Encoder,
    EpisodeSettings,
    Problem,
    config_from,
)
from fewshot_blo.heads import Head
from fewshot_blo.hypergrad import STRATEGIES, Penalty, Strategy, Unroll
from fewshot_blo.hypergrad.linear_solve import LinearSolver
from fewshot_blo.kernel import InnerSteps
from fewshot_blo.kernel.rules import UpdateRule
from fewshot_blo.records.quantity import ACCURACY
from fewshot_blo.tasks import Augmentation, DataError
from fewshot_blo.tasks.catalogue import DataSet
from fewshot_blo.tasks.protocols import Dirichlet, Episodic, MetaDataset
from fewshot_blo.training.settings import TrainSettings
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
            return TrainResult(tmp_path, 0, ACCURACY, 0.0, False)

        monkeypatch.setattr(training, "train", train)
        data = [f"--data.root={folder}", "--data=Folder", "--data.size=16"]
        episodes = ["--episodes.query=1", "--episodes.validation_query=2", "--episodes.way=2"]
        assert cli.main(["train", *options, *data, *episodes, "--test_tasks=0"]) == 0
        return seen[0]

    return parse


def test_the_defaults_of_the_command_line_are_those_of_the_settings(parsed: Any) -> None:
    given = {"data", "episodes"}
    found, expected = parsed(), Config().plain()
    assert found.keys() == expected.keys()
    assert all(found[name] == expected[name] for name in expected if name not in given)


def test_settings_round_trip_through_yaml(tmp_path: Path, parsed: Any) -> None:
    file = tmp_path / "config.yaml"
    config = Config(episodes=EpisodeSettings(shot=(1, 2)), strategy=Penalty(rho=3.0), seed=3)
    config = replace(config, problem=config.problem.changed(prox=1e-3))
    file.write_text(yaml.safe_dump(config.plain()))
    assert read_recipe(file) == config_from(config.plain())
    first = parsed(f"--config={file}")
    sections = ("encoder", "problem", "strategy", "adaptation", "train", "device", "seed")
    for section in sections:
        assert first[section] == config.plain()[section]
    assert config_from(first).strategy == Penalty(rho=3.0).for_training()
    assert config_from(first).episodes.shot == (1, 2)
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
    assert config_from(parsed("--episodes.shot=[1,2]")).episodes.shot == (1, 2)
    assert parsed("--episodes.shot=2")["episodes"]["shot"] == 2


@pytest.mark.parametrize(
    ("option", "word"),
    [
        ("--train.stepz=3", "train.stepz"),
        ("--train.steps=1.5", "train.steps"),
        ("--train.learning_rate=fast", "train.learning_rate"),
        ("--train.schedule=steps", "train.schedule"),
        ("--episodes.way=[1,2,3]", "episodes.way"),
        ("--episodes.way=few", "episodes.way"),
        ("--problem.learn_prox=3", "problem.learn_prox"),
        ("--data=imagenet", "data is 'imagenet'"),
        ("--strategy=magic", "strategy is 'magic'"),
        ("--strategy.rho=3", "strategy.rho"),
        ("--problem.network=conv4", "problem.network"),
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
    assert cli.main(["train", f"--config={file}"]) == 2
    assert "it must be a group of settings, such as train.steps" in capsys.readouterr().err


def described(kind: Any) -> dict[str, str]:
    """Names of settings with the text of the docstring."""
    found = re.findall(r"^    (\w+): ((?:.|\n     )*)", inspect.getdoc(kind) or "", re.MULTILINE)
    return {
        name: " ".join(text.split()).replace("``", "").removesuffix(".") for name, text in found
    }


def helped(*words: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(list(words)) == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("command", "groups"),
    [
        ("train", {"": Config, "episodes.": EpisodeSettings, "train.": TrainSettings,
                   "augment.": Augmentation}),
        ("evaluate", {"": EvaluationRequest}),
    ],
)  # fmt: skip
def test_help_explains_every_setting(
    command: str, groups: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    words = helped(command, "--help", capsys=capsys)
    for prefix, kind in groups.items():
        texts = described(kind)
        for field in fields(kind):
            # Its beginning: the whole text is in the help of the group.
            text = re.escape(" ".join(re.split(r"[.;:,]", texts[field.name])[0].split()[:4]))
            option = rf"(--{prefix}{field.name}( [^-]*?)?|{field.name}:) {text}"
            assert re.search(option, words), f"{prefix}{field.name}"


@pytest.mark.parametrize(
    ("place", "slot"),
    [("strategy", Strategy), ("problem", Problem), ("problem.head", Head), ("encoder", Encoder),
     ("data", DataSet), ("strategy.inner.rule", UpdateRule)],
)  # fmt: skip
def test_help_explains_every_setting_of_every_component(
    place: str, slot: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in SLOTS[slot].choices:
        words = helped("train", f"--{place}.help={SLOTS[slot].name(kind)}", capsys=capsys)
        for name in inspect.signature(kind).parameters:
            if name not in SLOTS[slot].given:
                assert re.search(rf"--{place}\.{name}[. ]", words), (kind, name)
                assert descriptions(kind).get(name), (kind, name)


def test_every_setting_of_a_linear_solver_is_explained() -> None:
    for kind in SLOTS[LinearSolver].choices:
        assert all(descriptions(kind).get(name) for name in inspect.signature(kind).parameters)


def test_a_component_of_the_command_line_has_its_own_defaults(
    tmp_path: Path, parsed: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert config_from(parsed("--strategy", "Penalty")).strategy == Penalty().for_training()
    few = config_from(parsed("--strategy=Penalty", "--strategy.inner.steps=3")).strategy
    assert few == Penalty(InnerSteps(3)).for_training()
    file = tmp_path / "config.yaml"
    file.write_text("strategy: {name: Unroll, truncate: 2, inner: {steps: 9}}\n")
    capsys.readouterr()
    changed = config_from(parsed(f"--config={file}", "--strategy=Penalty")).strategy
    assert changed == Penalty().for_training()
    said = "strategy is Penalty: settings of Unroll are dropped (truncate, inner)"
    assert said in capsys.readouterr().out
    kept = config_from(parsed(f"--config={file}", "--strategy.inner.steps=4")).strategy
    assert isinstance(kept, Unroll)
    assert (kept.truncate, kept.inner.steps) == (2, 4)


@pytest.mark.parametrize("kind", STRATEGIES, ids=lambda kind: kind.__name__)
def test_every_strategy_is_frozen_and_equal_by_its_settings(kind: type[Strategy]) -> None:
    first, second = (config_from({"strategy": kind.__name__}).strategy for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)
    with pytest.raises(AttributeError):
        first.inner = None  # type: ignore[assignment]


def test_a_recipe_with_a_wrong_setting_is_named(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("train: {stepz: 3}\n")
    with pytest.raises(ConfigurationError, match=r"recipe .*recipe\.yaml: .*'train\.stepz'"):
        read_recipe(file)


def test_a_protocol_by_name(parsed: Any) -> None:
    words = ["--episodes.protocol=MetaDataset", "--episodes.protocol.ways=[2,9]"]
    episodes = config_from(parsed(*words)).episodes
    assert episodes.drawn(training=True) == MetaDataset((2, 9))
    assert config_from({"episodes": {"protocol": "Dirichlet", "way": 3}}).episodes.drawn(
        training=False
    ) == Dirichlet(3, 1, 15)
    assert config_from({}).episodes.drawn(training=True) == Episodic(5, 1, 5)


def test_a_protocol_that_sizes_do_not_suit() -> None:
    episodes = config_from({"episodes": {"protocol": "Unequal", "shot": 2}}).episodes
    with pytest.raises(DataError, match="shot is 2 and shots is empty"):
        episodes.drawn(training=True)
    episodes = config_from({"episodes": {"protocol": "Dirichlet", "way": [2, 3]}}).episodes
    with pytest.raises(ConfigurationError, match=r"episodes.protocol: way is \(2, 3\): it must be"):
        episodes.drawn(training=True)
    with pytest.raises(ConfigurationError, match="did you mean MetaDataset"):
        config_from({"episodes": {"protocol": "Metadata"}})
