"""Fuzzed command lines and settings files of every command: no traceback, whatever the words.

Commands run in this process, on problems so small that one which is accepted ends at once.
"""

from __future__ import annotations

import contextlib
import io
import random
import shutil
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from small_images import picture
from small_runs import make_folder, options, write_recipe

from faults.elsewhere import elsewhere
from faults.row import Row
from fewshot_blo.commands import main as cli
from fewshot_blo.commands.running import options_of
from fewshot_blo.experiments.part_files import part_path
from fewshot_blo.hypergrad import STRATEGIES
from fewshot_blo.records.shard import Shard
from fewshot_blo.training.run import BEST

_PLAIN_WORDS = (
    "-3 0 1 1.5 nan inf -inf .nan .inf 1e308 -1e308 1e-320 12345678901234567890 "
    "-12345678901234567890 true false null x adamw [] [1,2] [5,3] {} {a:1} {encoder:-1} "
    "{encoder:.nan} [[]] !!python/object &a *a | > ' , : # % @ ~ ~/x .. / /dev/null - -- --x -h "
    "\\ é 緑 0x10 1_000 1:30 2020-01-01 yes no on = === $HOME torchvision:nothing hf: "
    "small_images:network :network"
)
_ODD_WORDS = ("\u202e", "\x1b[2J", "a\nb", "a\0b", '"', "", " ", "x" * 5000, "9" * 5000)
WORDS = (*_PLAIN_WORDS.split(), *_ODD_WORDS, "[" * 2000, "{a: " * 300)
LARGE = ("hidden", "size", "channels", "way", "shot", "query", "rank", "units", "crop")
"""Settings whose large values are refused at once, or for want of memory."""
STUDY = """
study: synthetic
settings: {example: 1, size: 2, rows: 2}
rows:
  first: {strategy: {name: Unroll, inner: {steps: 1}}, steps: 1}
"""


@dataclass(frozen=True)
class World:
    """Files that commands are run on."""

    root: Path
    images: Path
    colours: Path
    recipe: Path
    study: Path
    best: Path
    classifier: Path

    @property
    def whole(self) -> Path:
        """An evaluation, of which there is a part."""
        return self.root / "evaluation.json"

    @property
    def output(self) -> Path:
        """Where commands write; emptied after each."""
        return self.root / "output"


def make_world(root: Path) -> World:
    """Writes the files, those that commands write by these commands."""
    images = make_folder(root / "images")
    colours = root / "colours"
    for colour, name in enumerate(("red", "green")):
        (colours / name).mkdir(parents=True)
        for number in range(3):
            picture(colour, number).save(colours / name / f"{number}.png")
    study, recipe = root / "study.yaml", write_recipe(root / "recipe.yaml", images, **_TINY)
    study.write_text(STUDY)
    world = World(
        root, images, colours, recipe, study, root / "run" / BEST, root / "made" / "classifier.pt"
    )
    for words in (
        ["train", str(root / "run"), *options(images, **_TINY), "--test_tasks=0"],
        ["finetune", str(colours), *_FINE, f"--output={root / 'made'}"],
        ["evaluate", str(world.best), "--tasks=1", "--shard=1/1", f"--output={world.whole}"],
    ):
        status, text = run(words)
        if status:
            raise AssertionError(text)
    return world


_TINY = {
    "train__steps": 1,
    "train__validate_every": 1,
    "train__validation_tasks": 1,
    "encoder__hidden": 4,
    "episodes__tasks": 1,
    "strategy__inner__steps": 1,
    "adaptation__steps": 1,
}
_FINE = ("--backbone=small_images:network", "--adapts=head", "--views=one")


def _valid(command: str, world: World, rng: random.Random) -> list[str]:
    """Words that a command accepts."""
    tiny = options(world.images, **_TINY)
    made = str(world.output / "made")
    return {
        "train": ["train", made, *tiny, "--test_tasks=0"],
        "evaluate": ["evaluate", str(world.best), "--tasks=1", "--chunk=1", "--norm=support"],
        "merge": ["merge", str(part_path(world.whole, Shard()))],
        "compare": ["compare", str(world.best), f"--folder={made}", "--tasks=1", "--chunk=1"],
        "study": ["study", str(world.study), f"--folder={made}"],
        "finetune": ["finetune", str(world.colours), *_FINE, f"--output={made}"],
        "predict": [
            "predict",
            str(world.classifier),
            str(world.colours / "red" / "0.png"),
            "--own=small_images:network",
        ],
        "export": [
            "export",
            str(world.classifier),
            f"{made}.{rng.choice(('pt2', 'onnx', 'x'))}",
            "--own=small_images:network",
        ],
        "check": ["check", *tiny, "--check_tasks=1"],
        "data": ["data", *[o for o in tiny if o.startswith(("--data", "--episodes"))]],
    }[command]


SHARES = {
    "train": 30,
    "evaluate": 12,
    "merge": 6,
    "compare": 8,
    "study": 12,
    "finetune": 8,
    "predict": 8,
    "export": 4,
    "check": 4,
    "data": 10,
}
"""How often each command is drawn; the rest has no command."""
_SLOW = {"check", "export", "finetune"}
"""Commands of which an accepted call takes seconds: the option ``x`` ends most of them."""


def _spoilt(command: str, words: list[str], world: World, rng: random.Random) -> list[str]:
    """The words of a command with one to three faults."""
    own = options_of(command)
    names = [name for name in own.names() if name not in ("memory_limit", "debug")]
    if command in ("train", "check", "data") and rng.random() < 0.4:
        strategy = rng.choice(STRATEGIES).__name__
        if command != "data":
            words = [w for w in words if not w.startswith("--strategy")] + [
                f"--strategy={strategy}"
            ]
            names += _within(own, strategy)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        name = rng.choice(names)
        words = rng.choice(_FAULTS)(words, name, rng)
    if own.files and rng.random() < 0.3:
        words = _with_file(words, names, world, rng)
    if command == "study" and rng.random() < 0.7:
        words[1:2] = [str(_study_file(world, rng))]
    if command in _SLOW and rng.random() < 0.9:
        words.append("--x=1")
    return words


def _within(own: Any, strategy: str) -> list[str]:
    plans = own.plans({"strategy": strategy})
    return [name for plan in plans for name in plan.names() if name.startswith("strategy.")]


def _value(name: str, rng: random.Random) -> str:
    if name.rpartition(".")[2] in LARGE and rng.random() < 0.3:
        return rng.choice(("1000000", "99999999", "9000"))
    return rng.choice(WORDS)


def _other_value(words: list[str], name: str, rng: random.Random) -> list[str]:
    kept = [w for w in words if not w.startswith(f"--{name}=")]
    return [*kept, f"--{name}={_value(name, rng)}"]


def _two_words(words: list[str], name: str, rng: random.Random) -> list[str]:
    kept = [w for w in words if not w.startswith(f"--{name}=")]
    return [*kept, f"--{name}", _value(name, rng)]


def _misspelt(words: list[str], name: str, rng: random.Random) -> list[str]:
    letters = list(name)
    letters[rng.randrange(len(letters))] = rng.choice("x.-_=\0é")
    return [*words, f"--{''.join(letters)}={rng.choice(WORDS)}"]


def _loose_word(words: list[str], name: str, rng: random.Random) -> list[str]:
    del name
    place = rng.randrange(1, len(words) + 1)
    return [*words[:place], rng.choice(WORDS), *words[place:]]


def _cut(words: list[str], name: str, rng: random.Random) -> list[str]:
    del name
    place = rng.randrange(1, len(words) + 1)
    return words[:place] if place == len(words) else [*words[:place], *words[place + 1 :]]


def _group(words: list[str], name: str, rng: random.Random) -> list[str]:
    return [*words, f"--{name.partition('.')[0]}={rng.choice(WORDS)}"]


def _help(words: list[str], name: str, rng: random.Random) -> list[str]:
    return [*words, f"--{rng.choice((name, name.partition('.')[0], 'x'))}.help", rng.choice(WORDS)]


_Fault = Callable[[list[str], str, random.Random], list[str]]
_FAULTS: tuple[_Fault, ...] = (
    *[_other_value] * 6,
    *[_two_words] * 3,
    _misspelt,
    _loose_word,
    _cut,
    _group,
    _help,
)


def _with_file(
    words: list[str], names: Sequence[str], world: World, rng: random.Random
) -> list[str]:
    """The settings in a file, some of them spoilt, and some of the words on top."""
    file = world.root / "fuzzed.yaml"
    tree = yaml.safe_load(world.recipe.read_text())
    for _ in range(rng.choice((1, 1, 2, 4))):
        *above, last = rng.choice(names).split(".")
        level = tree
        for name in above:
            inner = level.get(name)
            level[name] = inner if isinstance(inner, dict) else {}
            level = level[name]
        level[last] = rng.choice(_YAML)
    _write(file, yaml.safe_dump(tree), rng)
    kept = [w for w in words if not w.startswith("--") or rng.random() < 0.1]
    return [*kept, "--config", str(file), "--train.steps=1"]


_YAML: tuple[Any, ...] = (
    -3, 0, 1.5, float("nan"), float("inf"), 1e308, 10**20, True, None, "", "x", "nan", [], [1, 2],
    {}, {"a": 1}, {"name": "x"}, {"name": 3}, {"name": None}, [[]], {1: 2}, "a\0b",
)  # fmt: skip


def _write(file: Path, text: str, rng: random.Random) -> None:
    """The text as it is, or cut, or with a byte changed."""
    content = bytearray(text.encode())
    damage = rng.random()
    if damage < 0.15:
        content = content[: rng.randrange(len(content))]
    elif damage < 0.4:
        content[rng.randrange(len(content))] = rng.randrange(256)
    elif damage < 0.45:
        content = bytearray(rng.randbytes(40))
    file.write_bytes(content)


def _study_file(world: World, rng: random.Random) -> Path:
    file = world.root / "fuzzed-study.yaml"
    tree = yaml.safe_load(STUDY)
    where = rng.choice((tree, tree["settings"], tree["rows"], tree["rows"]["first"]))
    where = rng.choice((where, tree["rows"]["first"]["strategy"]))
    names = ("study", "settings", "rows", "first", "strategy", "steps", "example", "size", "every")
    more = ("learning_rate", "keep", "passes", "patience", "inner", "name", "x", "seed", "decay")
    where[rng.choice((*names, *more))] = rng.choice(_YAML)
    _write(file, yaml.safe_dump(tree), rng)
    return file


def generated(world: World, rng: random.Random) -> list[str]:
    """One command line."""
    if rng.random() < 0.03:
        first = rng.choice(("", "--x", "trian", "--completion", "--help", "-h", "--version", "\0"))
        return [first, *(rng.choice(WORDS) for _ in range(rng.randrange(3)))]
    command = rng.choices(list(SHARES), list(SHARES.values()))[0]
    return _spoilt(command, _valid(command, world, rng), world, rng)


def run(words: Sequence[str]) -> tuple[int | str, str]:
    """Runs a command line; its exit status, or a traceback, and what it printed to stderr."""
    out, err = io.StringIO(), io.StringIO()
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        warnings.simplefilter("ignore")
        try:
            status = cli.main(list(words))
            # What predict cannot read is in its table.
            return status, err.getvalue() or (out.getvalue() if words[0] == "predict" else "")
        except BaseException:
            return traceback.format_exc(), err.getvalue()


def fault(status: int | str, error: str) -> str:
    """What is wrong with how a command ended; empty if nothing is."""
    if isinstance(status, str):
        return status.strip().splitlines()[-1]
    if "Traceback" in error or "an error of this program" in error:
        return error.strip().splitlines()[-1]
    if status not in (0, 1, 2, 130, 141):
        return f"the exit status is {status}"
    if status in (1, 2) and not error.strip():
        return "it fails without a word"
    if "\x1b" in error:
        return "an escape sequence reaches the terminal"
    return ""


def fuzz(count: int, *, seed: int = 0) -> Row:
    """Runs generated command lines.

    Args:
        count: how many.
        seed: of the generator.
    """
    row, rng = Row("nonsense", "command lines and settings files"), random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        world = make_world(Path(folder).resolve())
        place = world.root / "place"
        place.mkdir()
        with elsewhere(place):
            for _ in range(count):
                row.add(_wrong(generated(world, rng)))
                shutil.rmtree(world.output, ignore_errors=True)
                for left in place.iterdir():
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
    return row


def _wrong(words: Sequence[str]) -> str | None:
    """What a command line does that it must not, or None."""
    started = time.perf_counter()
    wrong = fault(*run(words))
    took = time.perf_counter() - started
    wrong = wrong or (f"it took {took:.0f} s" if took > _LONG else "")
    return f"{' '.join(word[:60] for word in words)!r}: {wrong}" if wrong else None


_LONG = 120
"""Seconds of a command that are too many, on a machine that does other work too."""
