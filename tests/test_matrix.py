"""The matrix of versions: what it pins, counts and writes."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from script_modules import script

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def matrix() -> Any:
    return script("matrix")


def test_lowest_versions_are_the_lower_bounds(matrix: Any) -> None:
    settings = """
[options]
install_requires =
    torch>=2.8,<2.15
    jsonargparse[signatures]>=4.49,<5
    numpy>=1.26
    pyyaml
[options.extras_require]
test =
    # A comment.
    numpy>=1.20
    ruff==0.17.*
    scipy>=1.11
"""
    expected = {"torch": "2.8", "jsonargparse": "4.49", "numpy": "1.26", "scipy": "1.11"}
    assert matrix.lowest(settings) == expected


def test_newest_versions_are_allowed_and_in_the_workflow(matrix: Any) -> None:
    requirements = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    workflow = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    for name, version in matrix.NEWEST.items():
        major, minor = version.split(".")[:2]
        assert f"<{major}.{int(minor) + 1}\n" in requirements
        assert f'{name}: "{version}"' in workflow
        assert f'{name}: "{matrix.lowest(requirements)[name]}.0"' in workflow


def test_a_report_is_counted(matrix: Any) -> None:
    suite = '<testsuite tests="9" skipped="2" failures="1" errors="1" time="3.5"/>'
    assert matrix.counts(f"<testsuites>{suite}</testsuites>") == (5, 2, 2, 3.5)


def test_a_later_result_replaces_that_of_its_environment(
    matrix: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matrix, "RESULTS", tmp_path / "versions.json")
    monkeypatch.setattr(matrix, "TABLE", tmp_path / "versions.md")
    versions = ("2.8.0", "0.23.0", "1.26.0")
    for kind, python, failed in (("lowest", "3.11.7", 3), ("newest", "3.11.7", 0)):
        result = matrix.Result(kind, python, *versions, "all", 5, 1, failed, 9.4, 2, "abc", "CPU")
        matrix.keep(result)
    matrix.keep(matrix.Result("lowest", "3.11.8", *versions, "all", 8, 1, 0, 9.6, 2, "def", "CPU"))
    both = [
        "| lowest | 3.11.8 | 2.8.0 | 0.23.0 | 1.26.0 | all | 8 | 1 | 0 | 10 | 2 | `def` | CPU |",
        "| newest | 3.11.7 | 2.8.0 | 0.23.0 | 1.26.0 | all | 5 | 1 | 0 | 9 | 2 | `abc` | CPU |",
    ]

    def written() -> list[str]:
        lines: list[str] = (tmp_path / "versions.md").read_text(encoding="utf-8").splitlines()
        return lines[lines.index(f"|{'---|' * 13}") + 1 :]

    assert written() == both
    matrix.keep(
        matrix.Result("newest", "3.11.7", *versions, "tests/a.py", 2, 0, 0, 1, 1, "fed", "CPU")
    )
    assert written()[:2] == both
    assert "| tests/a.py | 2 |" in written()[2]
    assert "Rows of some files" in written()[-1]
    # All tests include those of some files.
    matrix.keep(matrix.Result("newest", "3.11.7", *versions, "all", 5, 1, 0, 9.4, 2, "abc", "CPU"))
    assert written() == both


def test_results_of_another_environment_are_no_change_of_the_commit(
    matrix: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, code = tmp_path / "versions.json", tmp_path / "code.py"
    for name, path in (("ROOT", tmp_path), ("RESULTS", results), ("TABLE", results)):
        monkeypatch.setattr(matrix, name, path)
    results.write_text("[]")
    code.write_text("")
    person = ("-c", "user.name=a", "-c", "user.email=a@example.com")
    for words in (("init", "-q"), ("add", "."), (*person, "commit", "-q", "-m", "first")):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    commit = matrix.tested_commit()
    results.write_text("[1]")
    (tmp_path / "untracked").write_text("")
    assert matrix.tested_commit() == commit
    code.write_text("1")
    assert matrix.tested_commit() == f"{commit}-dirty"
