"""The command line: ``fewshot-blo COMMAND``."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from typing import Any

from fewshot_blo import __version__
from fewshot_blo.commands.launched import is_first
from fewshot_blo.commands.unexpected import report_unexpected
from fewshot_blo.records.terminal import CLOSED_PIPE, give_up_output, print_anything

COMMANDS = {
    "train": "Meta-train, validate on held-out classes, then evaluate the best checkpoint.",
    "evaluate": "Measure few-shot accuracy of checkpoints, on the same tasks, with intervals.",
    "merge": "Put the parts of an evaluation together that evaluate --shard i/n wrote.",
    "compare": "Train recipes, evaluate all on the same tasks, write a table and a picture.",
    "tune": "Search settings of a recipe by their accuracy on validation tasks.",
    "study": "Solve a bilevel problem beyond few-shot learning with several strategies.",
    "finetune": "Fine-tune a pretrained network on a folder with a few images a class.",
    "predict": "Label images with a classifier that finetune wrote, or teach it a class.",
    "serve": "Open a page where pictures are labelled, labels corrected and classes added.",
    "export": "Write a classifier as a file that needs nothing of this package.",
    "check": "Compare the kernel with a plain loop over your own network, in float64.",
    "models": "List the released models, or print the card of one.",
    "recipes": "List the recipes of the package, or print one.",
    "data": "Load a data set, say what is in it, and draw a picture of episodes.",
}
_FLAGS = ("--help", "--version", "--completion")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Returns:
        0; 1 for an error, which is printed as one message, or a check that failed; 2 for wrong
        arguments; 130 where the user interrupted; 141 where the reader of the output closed it.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    first = words[0] if words else "--help"
    print_anything()
    try:
        status = _run(first, words)
        if sys.stdout is not None:  # As in a program without a console.
            sys.stdout.flush()
    except BrokenPipeError:
        give_up_output()
        return CLOSED_PIPE
    except OSError as error:  # Of the output, such as a full disk: commands handle their own.
        give_up_output()
        print(f"fewshot-blo {first}: the output cannot be written ({error})", file=sys.stderr)
        return 1
    except Exception as error:  # As where a library of Python is broken.
        return report_unexpected(error, first, words[1:])
    except KeyboardInterrupt:
        print(f"fewshot-blo {first}: interrupted", file=sys.stderr)
        return 130
    return status


def _run(first: str, words: Sequence[str]) -> int:
    if first in COMMANDS:
        # Only now: it needs PyTorch, for which help and version do not wait.
        running: Any = importlib.import_module("fewshot_blo.commands.running")
        done: int = running.run(first, COMMANDS[first], words[1:])
        return done
    status, text = _answer(first, words[1:])
    if is_first():
        print(text, file=sys.stderr if status else sys.stdout)
    return status


def _answer(first: str, words: Sequence[str]) -> tuple[int, str]:
    """Exit status and text for what is no command."""
    if first in ("--help", "-h", "help"):
        return 0, _overview()
    if first == "--version":
        return 0, f"fewshot-blo {__version__}"
    if first == "--completion":
        return _completion(words)
    known = [*COMMANDS, *_FLAGS]
    close = difflib.get_close_matches(first, known, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return 2, f"fewshot-blo: there is no command '{first}'{hint}; --help has all"


def _overview() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:{width}}{description}" for name, description in COMMANDS.items()]
    return "\n".join(
        [
            "usage: fewshot-blo COMMAND [--OPTION VALUE ...]",
            "",
            "Few-shot learning, meta-learning and bilevel optimisation in PyTorch.",
            "",
            "commands",
            *lines,
            "",
            "  COMMAND --help          its options",
            "  --version               the version of this package",
            "  --completion SHELL      a script that completes commands and options in bash or zsh",
        ]
    )


def _completion(words: Sequence[str]) -> tuple[int, str]:
    if words not in (["bash"], ["zsh"]):
        return 2, "fewshot-blo: --completion needs the name of a shell, bash or zsh"
    completion: Any = importlib.import_module("fewshot_blo.commands.completion")
    return 0, completion.script(words[0], list(COMMANDS))


if __name__ == "__main__":
    sys.exit(main())
