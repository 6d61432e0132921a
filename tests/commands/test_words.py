"""The command line itself: names, values, help, completion and start-up."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_runs import make_folder

from fewshot_blo.commands import main as cli
from fewshot_blo.commands.help import descriptions, type_in_words
from fewshot_blo.commands.methods import METHODS
from fewshot_blo.commands.running import options_of
from fewshot_blo.experiments.components import Slot, parameters
from fewshot_blo.experiments.settings import SLOTS, config_from
from fewshot_blo.hypergrad import Penalty

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "recipes" / "omniglot-5w1s"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--train.step 5", "no option --train.step (did you mean --train.steps?)"),
        ("--train.stpes 5", "no option --train.stpes (did you mean --train.steps?)"),
        (
            "--steps 5",
            "or --adaptation.steps or --train.steps?",
        ),
        ("--colour red", "no option --colour"),
        ("--data.name Omniglot", "write --data Omniglot"),
        ("--strategy.rho 3", "no option --strategy.rho of Unroll: choose --strategy Penalty"),
        ("--strategy Penalty --strategy.roh 3", "did you mean --strategy.rho?"),
        ("--strategy MAML", "--config recipes/omniglot-5w1s/maml.yaml"),
        ("--problem maml", "MAML is --problem Initialization --strategy Unroll"),
        ("--strategy penalty", "did you mean Penalty?"),
        ("--problem proto-net", "recipes/omniglot-5w1s/protonet.yaml"),
        ("--problem.head r2d2", "--problem.head Ridge"),
        ("--data omniglot", "did you mean Omniglot?"),
        ("--encoder resnet", "did you mean ResNet12?"),
        ("--strategy.inner.rule Adamm", "did you mean Adam?"),
        ("--train.steps x", "train.steps is 'x': it must be a whole number"),
        ("--train.steps 1.5", "must be a whole number"),
        ("--train.steps=", "must be a whole number"),
        ("--train.steps -3", "train.steps is -3"),
        ("--train.learning_rate fast", "must be a number"),
        ("--train.optimizer adamw", "must be one of adam, sgd (did you mean adam?)"),
        ("--train.rates 3", "must be numbers by name, such as {encoder: 0.1}"),
        ("--episodes.way 5,10", "a whole number, or two whole numbers in brackets, such as [5,10]"),
        ("--resume=maybe", "must be true or false"),
        ("--resume true a b", "'b' is one word too many after 'a'"),
        ("--train.steps 1 --train.steps 2", "--train.steps is given 2 times"),
        ("a --run b", "--run is given 2 times, the word without an option included"),
        ("a.yaml", "a file of settings: name it with --config a.yaml"),
        ("--train", "--train has settings of its own, as --train.steps"),
        ("--train 3 --train.steps 5", "--train has settings of its own"),
        ("--train.steps", "--train.steps needs a value"),
        ("--strategy", "--strategy needs a value"),
        ("--strategy=", "strategy is ''"),
        ("--=3", "an option has no name"),
        ("-x", "no option -x: options begin with --"),
        ("-- a --train.steps", "'--train.steps' is one word too many"),
        ("--config", "--config needs a value"),
        ("--config nowhere.yaml", "nowhere.yaml cannot be read: No such file"),
        ("--config /", "/ cannot be read: Is a directory"),
        ("--nothing.help", "no settings at --nothing"),
        ("--strategy.help Nope", "no such strategy"),
    ],
)
def test_wrong_words(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", *words.split()]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("fewshot-blo train: ")
    assert captured.err.endswith("; see fewshot-blo train --help\n")
    assert captured.err.count("\n") == 1
    assert said in captured.err
    assert not [word for word in ("<class", "typing.", "Union", "None") if word in captured.err]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("compare", "there is nothing to compare"),
        ("compare x --seeds a", "seeds is 'a': it must be whole numbers"),
        ("compare x --seeds", "--seeds needs a value"),
        ("evaluate", "there is no checkpoint to evaluate"),
        ("evaluate x --norm foo", "must be one of transductive, support, running, all"),
        ("study", "there is no study"),
        ("merge", "there is nothing to merge"),
        ("study x --shard 3/2", "shard is '3/2': it must be a part i/n"),
        ("compare x --shard 0/2", "parts are counted from 1"),
        ("finetune x --jobs 99999", "jobs is 99999: it must be at most"),
        ("data x", "'x' belongs to no option"),
        ("data --memory_limit lots", "must be a number, or null for none"),
    ],
)
def test_wrong_words_of_others(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words.split()) == 2
    assert said in capsys.readouterr().err


def parsed(command: str, *words: str) -> list[Any]:
    return options_of(command).parse(words)


def test_ways_to_write_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    ways = (["--train.log-every", "7"], ["--train.log_every=7"], ["--train.log-every=7"])
    assert {parsed("train", *way)[0].train.log_every for way in ways} == {7}
    flags = (["--resume"], ["--resume", "true"], ["--resume=true"], ["--resume", "folder"])
    assert [parsed("train", *way)[1].resume for way in flags] == [True] * 4
    assert parsed("train", "--resume", "folder")[1].run == Path("folder")
    assert not parsed("train", "--resume", "false")[1].resume
    for way in (["--seeds", "0", "1", "2"], ["--seeds=[0,1,2]"], ["--seeds", "[0,1,2]"]):
        assert list(parsed("compare", "x", *way)[1].seeds) == [0, 1, 2]
    assert parsed("train", "--episodes.way", "[5,10]")[0].episodes.way == (5, 10)
    config, request, _ = parsed(
        "train", "~/run", "--data", "Folder", "--data.root=~/a", "--data.csv", "~/b.csv",
        "--start_from=~/c.pt",
    )  # fmt: skip
    assert request.run == tmp_path / "run"
    assert (config.data.root, config.data.csv) == (f"{tmp_path}/a", f"{tmp_path}/b.csv")
    assert config.start_from == f"{tmp_path}/c.pt"
    (tmp_path / "s.yaml").write_text("data: {name: Folder, root: ~/a}\ntrain: {steps: 3}\n")
    config, *_ = parsed("train", "--config=~/s.yaml", "--train.log_every=2")
    assert (config.data.root, config.train.steps) == (f"{tmp_path}/a", 3)
    # Settings without a name are those of the usual component, and go where it goes.
    (tmp_path / "s.yaml").write_text("strategy: {inner: {steps: 3}}\n")
    assert parsed("train", "--config=~/s.yaml")[0].strategy.inner.steps == 3
    of_penalty = parsed("train", "--config=~/s.yaml", "--strategy=Penalty")[0].strategy
    assert of_penalty == Penalty().for_training()
    assert parsed("finetune", "~/x", "--output=~/o", "--weights=~/w")[0].weights == f"{tmp_path}/w"


@pytest.mark.parametrize("name", METHODS)
def test_methods_are_as_their_recipes(name: str) -> None:
    """All that the options of a method choose is so in its recipe."""
    method = METHODS[name]
    recipe = RECIPES / f"{method.recipe}.yaml"
    whole = config_from(yaml.safe_load(recipe.read_text())).plain()
    config, *_ = parsed("train", *method.options.split())
    changed = config.plain()
    words = method.options.split()
    for option in (word.removeprefix("--") for word in words if word.startswith("--")):
        told, meant = changed, whole
        for part in option.split("."):
            told, meant = told[part], meant[part]
        if isinstance(told, dict):
            told, meant = told["name"], meant["name"]
        assert told == meant, option


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_of_a_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 92
    assert max(map(len, lines)) <= 101
    assert cli.COMMANDS[command] in lines
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("  --"):
            text = line[34:].strip() or after.strip() or line.partition("  ")[2]
            assert text, line
            assert not after.startswith("  --") or "  " in line.strip(), line


def every_setting() -> list[tuple[str, Any]]:
    return [(command, plan) for command in cli.COMMANDS for plan in options_of(command).plans({})]


@pytest.mark.parametrize("slot", SLOTS.values(), ids=lambda slot: slot.noun)
def test_every_setting_of_a_component_is_described(slot: Slot) -> None:
    for kind in slot.choices:
        names = {name for name, _, _ in parameters(kind)} - slot.given
        texts = descriptions(kind)
        assert not [name for name in names if not texts.get(name)], kind
        assert not [name for name in names if texts[name].startswith("of ")], kind


def test_every_setting_of_a_command_is_described() -> None:
    for command, whole in every_setting():
        for plan in whole.plans():
            texts = descriptions(plan.kind)
            for name in (*plan.settings, *plan.parts):
                assert texts.get(name), (command, plan.at(name))
                assert not texts[name].startswith("of "), (command, plan.at(name))


def test_help_of_components(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--data.help", "Omniglot"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("--data Omniglot\n\n1,623 handwritten characters")
    assert "--data.rotations" in out
    assert "download the archives if they are missing" in out
    assert cli.main(["train", "--strategy.help", "Penalty"]) == 0
    out = capsys.readouterr().out
    assert "--strategy.rho NUMBER" in out
    assert "ValueFunction" in out
    assert cli.main(["train", "--strategy", "Penalty", "--strategy.help"]) == 0
    assert capsys.readouterr().out == out
    assert cli.main(["train", "--train.help"]) == 0
    assert "decoupled for adam (AdamW)" in " ".join(capsys.readouterr().out.split())
    assert cli.main(["train", "--train.chunk.help"]) == 0
    assert "It is lowered if memory runs out" in " ".join(capsys.readouterr().out.split())


def test_types_in_words() -> None:
    assert type_in_words(int | tuple[int, int]) == "INT|[INT,INT]"
    assert type_in_words(float | None) == "NUMBER"


@pytest.mark.parametrize("command", ["--help", "--version"])
def test_starts_without_torch(command: str) -> None:
    code = (
        "import sys, time; start = time.process_time(); "
        "from fewshot_blo.commands.main import main; main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules; assert time.process_time() - start < 0.5"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_the_package_starts_without_torch() -> None:
    code = "import sys, fewshot_blo; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["tr"], ["train"]),
        (["train", "--conf"], ["--config"]),
        (["train", "--train.val"], ["--train.validate_every", "--train.validation_tasks"]),
        (["compare", "--see"], ["--seed", "--seeds"]),
    ],
)
def test_completion_in_bash(words: list[str], found: list[str], tmp_path: Path) -> None:
    script = tmp_path / "complete.bash"
    options = [sys.executable, "-m", "fewshot_blo", "--completion", "bash"]
    script.write_text(subprocess.run(options, capture_output=True, text=True, cwd=ROOT).stdout)
    told = (
        f"source {script}; COMP_WORDS=(fewshot-blo {' '.join(words)}); COMP_CWORD={len(words)}; "
        '_fewshot_blo; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    result = subprocess.run(["bash", "-c", told], capture_output=True, text=True, check=True)
    assert sorted(result.stdout.split()) == found


def test_completion_in_other_shells(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--completion", "zsh"]) == 0
    assert capsys.readouterr().out.startswith("autoload -U +X bashcompinit && bashcompinit\n")
    assert cli.main(["--completion", "fish"]) == 2
    assert cli.main(["--completion"]) == 2


def test_positional_data_and_a_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_folder(tmp_path / "images")
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ["--data=Folder", "--data.root=~/images", "--data.size=16", "--picture=~/p.png"]
    assert cli.main(["data", *words, "--episodes.way=3", "--episodes.query=2"]) == 0
    assert (tmp_path / "p.png").is_file()
    assert "10 classes" in capsys.readouterr().out
