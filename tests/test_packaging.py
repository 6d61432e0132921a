"""The wheel holds both packages with their data, and works away from the source tree."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("fewshot_blo", "tasks")
SOURCES = (*PACKAGES, "setup.cfg", "pyproject.toml", "README.md", "LICENSE")


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
            shutil.copytree(ROOT / name, source / name, ignore=ignored)
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


def test_wheel_holds_every_file_of_both_packages_and_no_other(wheel: Path) -> None:
    expected = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if not name.startswith(information(wheel))}
    assert held == expected
    assert {"fewshot_blo/py.typed", "tasks/py.typed"} <= held
    assert any(name.startswith("tasks/splits/") for name in held)


def test_wheel_names_its_command_and_its_requirements(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        commands = archive.read(f"{information(wheel)}/entry_points.txt").decode()
        described = message_from_string(archive.read(f"{information(wheel)}/METADATA").decode())
    assert "fewshot-blo = fewshot_blo.cli:main" in commands
    assert described["Requires-Python"] == ">=3.10"
    assert any(line.startswith("torch<2.14") for line in described.get_all("Requires-Dist", []))
    assert set(described.get_all("Provides-Extra", [])) == {
        "backbones",
        "onnx",
        "peers",
        "sklearn",
        "test",
    }


def test_installed_wheel_is_used_from_any_folder(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    program = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "import fewshot_blo, tasks\n"
        "print(fewshot_blo.__file__, tasks.__file__, sep='\\n')"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    expected = [str(site / package / "__init__.py") for package in PACKAGES]
    assert result.stdout.splitlines() == expected
