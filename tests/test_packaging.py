"""The wheel holds the package with its data, and works away from the source tree."""

from __future__ import annotations

import configparser
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
import yaml
from script_modules import script

import fewshot_blo

ROOT = Path(__file__).resolve().parents[1]
# Folders of the checkout by their place in the package.
FOLDERS = {
    "fewshot_blo": "fewshot_blo",
    "tasks": "fewshot_blo/tasks",
    "checkpoints/released": "fewshot_blo/released",
    "recipes": "fewshot_blo/recipes",
}
SOURCES = (*FOLDERS, "setup.cfg", "pyproject.toml", "README.md", "LICENSE")


def setuptools_version() -> tuple[int, ...]:
    """Major and minor version, ``(0,)`` where setuptools is absent."""
    try:
        version = importlib.metadata.version("setuptools")
    except importlib.metadata.PackageNotFoundError:
        return (0,)
    return tuple(int(part) for part in version.split(".")[:2])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel built from a copy, so that the checkout gains no files and lends no stale ones."""
    if setuptools_version() < (70, 1):
        pytest.skip("building a wheel without network needs setuptools>=70.1")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    options = ["--no-build-isolation", "--no-deps", "--no-index", f"--wheel-dir={folder}"]
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return next(folder.glob("*.whl"))


def information(wheel: Path) -> str:
    """The folder of a wheel's metadata."""
    name, version = wheel.name.split("-")[:2]
    return f"{name}-{version}.dist-info"


def test_wheel_holds_every_file_and_no_other(wheel: Path) -> None:
    expected = {
        f"{place}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, place in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if not name.startswith(information(wheel))}
    assert held == expected
    assert {"fewshot_blo/py.typed", "fewshot_blo/tasks/py.typed"} <= held
    assert any(name.startswith("fewshot_blo/tasks/splits/") for name in held)
    assert {
        "fewshot_blo/recipes/glyphs.yaml",
        "fewshot_blo/recipes/studies/cleaning-50.yaml",
    } <= held
    assert sum(name.startswith("fewshot_blo/released/") for name in held) == 3 * 9


def test_wheel_names_its_command_and_its_requirements(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        commands = archive.read(f"{information(wheel)}/entry_points.txt").decode()
        described = message_from_string(archive.read(f"{information(wheel)}/METADATA").decode())
    assert "fewshot-blo = fewshot_blo.commands.main:main" in commands
    assert described["Requires-Python"] == ">=3.10"
    needed = [line.replace(" ", "") for line in described.get_all("Requires-Dist", [])]
    assert any(line.startswith("torch<2.15") for line in needed)
    assert set(described.get_all("Provides-Extra", [])) == {
        "backbones",
        "docs",
        "formats",
        "heic",
        "hf",
        "mutation",
        "mlflow",
        "wandb",
        "onnx",
        "peers",
        "pyright",
        "serve",
        "sklearn",
        "test",
        "tune",
    }


def test_metadata_is_complete(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        described = message_from_string(archive.read(f"{information(wheel)}/METADATA").decode())
        names = archive.namelist()
    classifiers = set(described.get_all("Classifier", []))
    pythons = {f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)}
    assert pythons | {"Typing :: Typed", "Operating System :: POSIX :: Linux"} <= classifiers
    assert any(name.startswith("Topic :: ") for name in classifiers)
    # Newer versions of setuptools write the second.
    assert "MIT" in (described["License"], described["License-Expression"])
    assert described["Version"] == fewshot_blo.__version__
    assert described["Description-Content-Type"] == "text/markdown"
    assert {"Summary", "Keywords", "Author"} <= set(described.keys())
    assert any(name.endswith("LICENSE") for name in names)


def test_every_document_names_the_same_version() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    version, date = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - (\S+)$", changes, re.MULTILINE)[0]
    assert version == citation["version"] == fewshot_blo.__version__
    assert date == citation["date-released"]


def test_extras_are_installed_from_a_checkout() -> None:
    """The package is on no index: pip would look for its name there."""
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    sources = [*ROOT.glob("fewshot_blo/**/*.py"), *ROOT.glob("tasks/**/*.py")]
    texts = {path: path.read_text(encoding="utf-8") for path in (*documents, *sources)}
    assert [path for path, text in texts.items() if "fewshot_blo[" in text] == []
    named = {name for text in texts.values() for name in re.findall(r"[\"']\.\[(\w+)\]", text)}
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    assert {"heic", "tune"} <= named <= set(settings["options.extras_require"])


def imported_files(folder: Path, site: Path) -> list[str]:
    """The files of the package and of its data package, imported in a folder."""
    program = (
        f"import sys; sys.path.insert(1, {str(site)!r})\n"
        "import fewshot_blo, fewshot_blo.tasks\n"
        "fewshot_blo.train, fewshot_blo.SharedEncoder\n"
        "print(fewshot_blo.__file__, fewshot_blo.tasks.__file__, sep='\\n')"
    )
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=True)
    return result.stdout.splitlines()


@pytest.mark.slow
def test_installed_wheel_is_used_beside_a_users_own_tasks(wheel: Path, tmp_path: Path) -> None:
    site, user = tmp_path / "site", tmp_path / "user"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (user / "tasks").mkdir(parents=True)
    (user / "tasks.py").write_text("raise RuntimeError('of another program')\n")
    package = site / "fewshot_blo"
    expected = [str(package / "__init__.py"), str(package / "tasks" / "__init__.py")]
    assert imported_files(user, site) == expected
    assert imported_files(user, ROOT) == [
        str(ROOT / "fewshot_blo" / "__init__.py"),
        str(ROOT / "fewshot_blo" / "tasks" / "__init__.py"),
    ]


def test_installed_wheel_trains_and_predicts_by_name(wheel: Path, tmp_path: Path) -> None:
    """What ``scripts/check_wheel.py`` does in a fresh environment, here without one."""
    site, work = tmp_path / "site", tmp_path / "work"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    work.mkdir()
    checks = script("check_wheel")
    found = {**os.environ, "PYTHONPATH": str(site)}
    told = checks.use(sys.executable, work, found, [checks.TRAINING])
    assert f"of 75 printed letters; {site}" in told
    assert (work / "runs" / "glyphs" / "best.pt").is_file()
