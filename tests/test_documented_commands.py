"""Every command line that README.md and the documents print is one that the program takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from fewshot_blo.commands.main import COMMANDS
from fewshot_blo.commands.running import options_of
from fewshot_blo.errors import ConfigurationError

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        ROOT / "benchmarks" / "README.md",
        *(ROOT / "checkpoints").rglob("*.md"),
    ]
)

# What a reader puts in, by an example of it. Longer names first.
_EXAMPLES = {
    "recipes/omniglot-60way/NAME.yaml": "recipes/omniglot-60way/protonet.yaml",
    "recipes/omniglot-5w1s/NAME.yaml": "recipes/omniglot-5w1s/protonet.yaml",
    "recipes/cifarfs-5w1s/NAME.yaml": "recipes/cifarfs-5w1s/protonet.yaml",
    "recipes/studies/NAME.yaml": "recipes/studies/synthetic-1.yaml",
    "timm:NAME": "timm:resnet18",
    "--norm MODE": "--norm support",
    "--data DATA": "--data Glyphs",
    "--data NAME": "--data Glyphs",
    "--config RECIPE": "--config recipes/omniglot-5w1s/protonet.yaml",
    "--way N": "--way 5",
    "--shot K": "--shot 1",
    "$((SLURM_ARRAY_TASK_ID+1))/$SLURM_ARRAY_TASK_COUNT": "1/4",
    "$OUT": "out",
}
_SETTINGS = re.compile(r"(--config|tune|--space) (?!recipes/)(\S+\.yaml)")
_RECIPE = "recipes/omniglot-5w1s/protonet.yaml"


def commands(text: str) -> list[str]:
    """The commands of a document: lines of its blocks, and what stands in backquotes."""
    blocks = re.findall(r"^    (?:\$ )?(.*)$|^((?:fewshot-blo|torchrun) .*)$", text, re.MULTILINE)
    lines = "\n".join(indented or fenced for indented, fenced in blocks)
    lines = re.sub(r"\\\n\s*", " ", lines)
    inline = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text)]
    found = [line for line in [*lines.splitlines(), *inline] if "..." not in line]
    return [
        match[1]
        for line in found
        if (match := re.match(r"(?:\S+=\S+ )*(?:torchrun .*-m fewshot_blo|fewshot-blo) (.*)", line))
    ]


def words(command: str) -> list[str]:
    """Its words, with examples in place of what a reader puts in."""
    for name, example in _EXAMPLES.items():
        command = command.replace(name, example)
    command = _SETTINGS.sub(rf"\1 {_RECIPE}", command)
    return shlex.split(re.split(r"\s\s*[|>]|\s;", command)[0], comments=True)


CASES = [
    pytest.param(command, id=f"{path.relative_to(ROOT)}-{number}")
    for path in DOCUMENTS
    for number, command in enumerate(dict.fromkeys(commands(path.read_text(encoding="utf-8"))))
]


@pytest.mark.parametrize("command", CASES)
def test_a_printed_command_is_taken(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    first, *others = words(command)
    if first in ("COMMAND", "--help", "--version", "--completion"):
        return
    assert first in COMMANDS
    if any(word == "--help" or word.endswith(".help") for word in others):
        return
    if not others:  # A command by its name alone is a mention.
        return
    try:
        options_of(first).parse(others)
    except ConfigurationError as error:
        pytest.fail(f"fewshot-blo {command}: {error}")


def test_a_wrong_command_is_found() -> None:
    with pytest.raises(ConfigurationError):
        options_of("evaluate").parse(words("runs/a/best.pt --taskz 5"))
