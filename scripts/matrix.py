"""Runs the tests with the lowest and the newest declared versions, each in a fresh environment.

    python scripts/matrix.py                                # what this machine can run; the table
    python scripts/matrix.py --only lowest tests/kernel     # one kind of environment, some tests
    python scripts/matrix.py --python 3.10 --install        # environments alone, without tests
    python scripts/matrix.py --constraints                  # the lowest versions, for pip

Environments are made in ``build/matrix``, for each of Python 3.10 to 3.13 that is installed. With
the oldest of them, ``lowest`` has the lowest declared version of every requirement; with later ones
only torch and torchvision are the lowest, for others may have no build for them. Results are kept
in ``docs/data/versions.json`` and written as a table to ``docs/results/versions.md``.
"""

from __future__ import annotations

import argparse
import configparser
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "matrix"
RESULTS = ROOT / "docs" / "data" / "versions.json"
TABLE = ROOT / "docs" / "results" / "versions.md"
ALL = "all"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
KINDS = ("lowest", "newest")
NEWEST = {"torch": "2.14.1", "torchvision": "0.29.1"}
"""The newest releases below the upper bounds of ``setup.cfg``."""

_BOUND = re.compile(r"^([\w.-]+)(?:\[[^\]]*\])?\s*>=\s*([\w.]+)")


@dataclass(frozen=True)
class Environment:
    """An environment of the matrix.

    Attributes:
        python: version of Python, as ``3.11``.
        kind: ``lowest`` or ``newest``.
        pinned: versions by name of the requirement.
    """

    python: str
    kind: str
    pinned: Mapping[str, str]

    @property
    def folder(self) -> Path:
        return FOLDER / f"python{self.python}-{self.kind}"

    @property
    def interpreter(self) -> str:
        return str(self.folder / "bin" / "python")

    def install(self, *, keep: bool) -> None:
        """Makes the environment; with ``keep``, goes on with what an earlier call has installed.

        Raises:
            subprocess.CalledProcessError: if a version cannot be installed.
        """
        if not (keep and self.folder.exists()):
            command = [f"python{self.python}", "-m", "venv", "--clear", str(self.folder)]
            subprocess.run(command, check=True)
        pip = [self.interpreter, "-m", "pip", "install", "--quiet"]
        # The pip of Python 3.10 and 3.11 tries versions of requirements for hours.
        subprocess.run([*pip, "--upgrade", "pip>=25"], check=True)
        constraints = self.folder / "constraints.txt"
        constraints.write_text(_lines(self.pinned), encoding="utf-8")
        pip.append(f"--constraint={constraints}")
        # Together, or torchvision brings a torch of its own.
        subprocess.run([*pip, "torch", "torchvision"], check=True)
        subprocess.run([*pip, "--editable", f"{ROOT}[test]"], check=True)

    def version(self, name: str) -> str:
        """The version of a distribution that is installed."""
        program = f"import importlib.metadata; print(importlib.metadata.version('{name}'))"
        return _output(self.interpreter, "-c", program)

    def test(self, paths: Sequence[str], processes: int, commit: str) -> Result:
        """Runs tests, all without paths; their output is in ``tests.log`` of the folder."""
        report, log = self.folder / "tests.xml", self.folder / "tests.log"
        report.unlink(missing_ok=True)
        options = ["-v", f"--numprocesses={processes}", "--dist=worksteal", f"--junitxml={report}"]
        command = [self.interpreter, "-m", "pytest", *options, *paths]
        with log.open("w", encoding="utf-8") as file:
            subprocess.run(command, cwd=ROOT, stdout=file, stderr=file, check=False)
        if not report.exists():
            raise SystemExit(f"pytest ended without a report: see {log}")
        passed, skipped, failed, seconds = counts(report.read_text(encoding="utf-8"))
        return Result(
            self.kind,
            _output(self.interpreter, "-c", "import platform; print(platform.python_version())"),
            self.version("torch"),
            self.version("torchvision"),
            self.version("numpy"),
            " ".join(paths) or ALL,
            passed,
            skipped,
            failed,
            seconds,
            processes,
            commit,
            _machine(),
        )


@dataclass(frozen=True)
class Result:
    """A row of the table: versions, how many tests passed, were skipped and failed, and where."""

    kind: str
    python: str
    torch: str
    torchvision: str
    numpy: str
    tests: str
    passed: int
    skipped: int
    failed: int
    seconds: float
    processes: int
    commit: str
    machine: str

    @property
    def environment(self) -> tuple[str, str]:
        """Kind, and Python without its patch version."""
        return (self.kind, self.python.rpartition(".")[0])

    def replaces(self, earlier: Result) -> bool:
        """Whether it has all that an earlier result had."""
        return self.environment == earlier.environment and self.tests in (ALL, earlier.tests)


def lowest(settings: str) -> dict[str, str]:
    """The lowest versions that a ``setup.cfg`` declares for the package and its tests.

    Args:
        settings: text of the file.

    Returns:
        Versions by name; the package's own bound counts where its tests name a requirement again.
    """
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(settings)
    lines = parser["options.extras_require"]["test"] + parser["options"]["install_requires"]
    found = [_BOUND.match(line.strip()) for line in lines.splitlines()]
    return {match[1]: match[2] for match in found if match is not None}


def counts(report: str) -> tuple[int, int, int, float]:
    """Passed, skipped and failed tests, and seconds, of a report of pytest in JUnit's format."""
    suites = ElementTree.fromstring(report).findall("testsuite")
    total, skipped, failures, errors = (
        sum(int(suite.attrib[name]) for suite in suites)
        for name in ("tests", "skipped", "failures", "errors")
    )
    failed = failures + errors
    return total - skipped - failed, skipped, failed, sum(float(s.attrib["time"]) for s in suites)


def table(results: Sequence[Result]) -> str:
    """The document with one row for each result."""
    rows = [
        f"| {r.kind} | {r.python} | {r.torch} | {r.torchvision} | {r.numpy} | {r.tests} "
        f"| {r.passed} | {r.skipped} | {r.failed} | {r.seconds:.0f} "
        f"| {r.processes} | `{r.commit}` | {r.machine} |"
        for r in results
    ]
    some = any(r.tests != ALL for r in results)
    return "\n".join([_HEADER, *rows, *(["", _SOME] if some else []), ""])


_SOME = "Rows of some files are of later commits than rows of all: they repeat what failed there."
_COLUMNS = (
    "environment",
    "Python",
    "torch",
    "torchvision",
    "numpy",
    "tests",
    "passed",
    "skipped",
    "failed",
    "seconds",
    "processes",
    "commit",
    "machine",
)
_HEADER = f"""\
# Tests with the lowest and the newest versions

Written by `make matrix` (`python scripts/matrix.py --help`), on CPUs. "lowest" has the lowest
version that `setup.cfg` declares for each requirement, "newest" the newest torch and torchvision
below its upper bounds and the newest of all others. Other pairs of Python and torch are in
`.github/workflows/ci.yml`. Tests that need a GPU, a browser or files of data are skipped where
there are none.

| {" | ".join(_COLUMNS)} |
|{"---|" * len(_COLUMNS)}"""


def environments(kinds: Sequence[str], pythons: Sequence[str]) -> list[Environment]:
    """Those of some Pythons for which an interpreter is installed."""
    bounds = lowest((ROOT / "setup.cfg").read_text(encoding="utf-8"))
    found = [python for python in PYTHONS if _runs(f"python{python}")]
    made = []
    for python in [python for python in found if python in pythons]:
        pair = {name: bounds[name] for name in NEWEST}
        pinned = {"lowest": bounds if python == found[0] else pair, "newest": NEWEST}
        made += [Environment(python, kind, pinned[kind]) for kind in KINDS if kind in kinds]
    return made


def keep(result: Result) -> None:
    """Adds a result to those that are kept, and writes the table."""
    rows = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
    earlier = [row for row in (Result(**row) for row in rows) if not result.replaces(row)]
    kept = sorted([*earlier, result], key=lambda row: (row.environment, row.tests))
    RESULTS.write_text(json.dumps([asdict(row) for row in kept], indent=1) + "\n", encoding="utf-8")
    TABLE.write_text(table(kept), encoding="utf-8")


def main() -> None:
    """Makes the environments, runs the tests, and writes the table after each environment."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tests", nargs="*", help="tests to run, as for pytest (default: all)")
    parser.add_argument("--only", choices=KINDS, help="one kind of environment (default: both)")
    parser.add_argument("--python", choices=PYTHONS, help="one version (default: all installed)")
    parser.add_argument("--install", action="store_true", help="make the environments, and end")
    parser.add_argument("--keep", action="store_true", help="go on with earlier environments")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--constraints", action="store_true", help="print the lowest versions, and end"
    )
    options = parser.parse_args()
    if options.constraints:
        sys.stdout.write(_lines(lowest((ROOT / "setup.cfg").read_text(encoding="utf-8"))))
        return
    pythons = [options.python] if options.python else PYTHONS
    chosen = environments([options.only] if options.only else KINDS, pythons)
    absent = sorted({*pythons} - {environment.python for environment in chosen})
    if absent:
        print(f"not installed, hence not run: Python {', '.join(absent)}")
    bad = False
    commit = tested_commit()
    for environment in chosen:
        try:
            environment.install(keep=options.keep)
        except subprocess.CalledProcessError as error:
            print(f"{environment.folder.name} cannot be installed: {error}", file=sys.stderr)
            bad = True
            continue
        if options.install:
            continue
        result = environment.test(options.tests, options.processes, commit)
        keep(result)
        print(f"{environment.folder.name}: {result}")
        bad = bad or result.failed > 0
    sys.exit(bad)


def tested_commit() -> str:
    """The commit, with "-dirty" if tracked files are changed, other than the results themselves."""
    git = ("git", "-C", str(ROOT))
    commit = _output(*git, "rev-parse", "--short", "HEAD")
    results = [f":!{path.relative_to(ROOT)}" for path in (RESULTS, TABLE)]
    changed = _output(*git, "status", "--porcelain", "--untracked-files=no", "--", ".", *results)
    return f"{commit}-dirty" if changed else commit


def _runs(command: str) -> bool:
    """Whether a Python of this name is there and starts: a shim of pyenv may name an absent one."""
    if shutil.which(command) is None:
        return False
    return subprocess.run([command, "-c", ""], capture_output=True, check=False).returncode == 0


def _machine() -> str:
    """Model of the processor, and the number of cores."""
    described = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    found = re.search(r"^model name\s*:\s*(.+)$", described, re.MULTILINE)
    return f"{found[1] if found else platform.machine()}, {os.cpu_count()} cores"


def _lines(pinned: Mapping[str, str]) -> str:
    return "".join(f"{name}=={version}\n" for name, version in sorted(pinned.items()))


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
