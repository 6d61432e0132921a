"""Names of users on terminals, and outputs that are closed or narrow."""

from __future__ import annotations

import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from fewshot_blo.records.terminal import shown, shown_lines

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("groß 緑", "groß 緑"),
        ("日本", "日本"),
        ("a\nb", "a\\nb"),
        ("a\r\tb", "a\\r\\tb"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\x9b2J", "\\x9b2J"),
        ("gpj.\u202eexe", "gpj.\\u202eexe"),
        ("\u2066a\u2069", "\\u2066a\\u2069"),
        ("a\u2028b", "a\\u2028b"),
        ("\udce9.png", "\\udce9.png"),
        ("👩\u200d🔬", "👩\u200d🔬"),
        ("C:\\new", "C:\\new"),
    ],
)
def test_names_are_one_line(name: str, expected: str) -> None:
    assert shown(name) == expected


def test_nothing_that_is_shown_controls_a_terminal() -> None:
    everything = "".join(map(chr, range(0x11000)))
    found = shown(everything)
    assert {unicodedata.category(letter) for letter in found}.isdisjoint({"Cc", "Cs", "Zl", "Zp"})
    bidirectional = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    assert {unicodedata.bidirectional(letter) for letter in found}.isdisjoint(bidirectional)


def test_a_message_keeps_its_lines() -> None:
    assert shown_lines("two:\n  \x1b[2J") == "two:\n  \\x1b[2J"


def run(code: str, *, reader: bool = True, **environment: str) -> tuple[int, str, str]:
    """Exit status, output and errors of a program; without a reader its output is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "", **environment},
    )
    if not reader:
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
    out, errors = process.communicate()
    return process.returncode, (out or b"").decode(), errors.decode()


MAIN = "import sys; from fewshot_blo.commands import main as cli; "


def test_a_closed_output_ends_a_command_quietly() -> None:
    said = "cli._run = lambda first, words: print('x' * 100000) or 0; sys.exit(cli.main(['data']))"
    assert run(MAIN + said, reader=False) == (141, "", "")
    late = "cli._run = lambda first, words: print('x') or 0; sys.exit(cli.main(['data']))"
    assert run(MAIN + late, reader=False) == (141, "", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has /dev/full")
def test_a_full_disk_is_told() -> None:
    said = "cli._run = lambda first, words: print('x') or 0; sys.exit(cli.main(['data']))"
    with Path("/dev/full").open("w") as full:
        process = subprocess.run(
            [sys.executable, "-c", MAIN + said],
            stdout=full,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            check=False,
        )
    assert process.returncode == 1
    assert process.stderr.startswith(b"fewshot-blo data: the output cannot be written ([Errno 28]")
    assert process.stderr.count(b"\n") == 1


def test_without_a_console() -> None:
    said = "sys.stdout = None; cli._run = lambda first, words: 0; sys.exit(cli.main(['data']))"
    assert run(MAIN + said) == (0, "", "")


def test_what_an_encoding_lacks_is_escaped() -> None:
    said = "cli._run = lambda first, words: print('日本') or 0; sys.exit(cli.main(['data']))"
    assert run(MAIN + said, PYTHONIOENCODING="ascii") == (0, "\\u65e5\\u672c\n", "")
    assert run(MAIN + said, PYTHONIOENCODING="utf-8") == (0, "日本\n", "")


def test_an_interrupt_anywhere_is_one_line() -> None:
    code = (
        MAIN + "\ndef stop(first, words): raise KeyboardInterrupt\n"
        "cli._run = stop; sys.exit(cli.main(['predict']))"
    )
    assert run(code) == (130, "", "fewshot-blo predict: interrupted\n")
