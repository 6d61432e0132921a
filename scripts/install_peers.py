"""Installs higher, learn2learn, TorchOpt and easyfsl, with which tests and benchmarks compare.

torchmeta is not among them: its last release, 1.8.0, needs torch below 1.10. The others are
installed for the Python that runs this script; installed versions of torch, torchvision and numpy
are not replaced. learn2learn 0.2.0 is the last release. Its archive contains C files that
do not compile on Python 3.11 and later, because an old Cython generated them. Here it is built from
its Cython sources. The wheel is kept in the folder FEWSHOT_BLO_WHEELS, by default
``~/.cache/fewshot_blo/wheels``, and is built once for each version of Python.
"""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from importlib import metadata
from pathlib import Path

PEERS = ("higher", "easyfsl", "torchopt")
VERSION = "0.2.0"
ARCHIVE_SHA256 = "69f1d7cb0d0a6be7a2c6ad8e83e2ebbe70fb05e51d61e45e63078b40c75ea419"
BUILD_SYSTEM = """\
[build-system]
requires = ["setuptools>=77,<85", "cython>=3.0.11,<3.1"]
build-backend = "setuptools.build_meta"
"""


def main() -> None:
    """Installs the libraries that are missing.

    Raises:
        SystemExit: if pip fails; its output has the reason.
    """
    if all(map(installed_version, PEERS)) and installed_version("learn2learn") == VERSION:
        print(f"{', '.join(PEERS)} and learn2learn are installed")
        return
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        pip("install", "--constraint", str(kept_versions(scratch)), *peer_requirements())
        wheel = cached_wheel() or build_wheel(scratch)
        # Its requirements name packages that it imports for other purposes only (qpth, gsutil).
        pip("install", "--no-deps", "--no-index", str(wheel))
    print(f"installed {', '.join(PEERS)} and learn2learn {VERSION}")


def installed_version(package: str) -> str | None:
    """The version of a package in this environment; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def peer_requirements() -> list[str]:
    """The requirements of the extra ``peers`` in setup.cfg."""
    settings = configparser.ConfigParser()
    settings.read(Path(__file__).resolve().parents[1] / "setup.cfg", encoding="utf-8")
    return settings["options.extras_require"]["peers"].split()


def kept_versions(folder: Path) -> Path:
    """Writes a pip constraints file with the installed versions of the large packages."""
    versions = {name: installed_version(name) for name in ("torch", "torchvision", "numpy")}
    constraints = folder / "constraints.txt"
    constraints.write_text(
        "".join(f"{name}=={version}\n" for name, version in versions.items() if version)
    )
    return constraints


def wheel_folder() -> Path:
    """The folder of wheels for this version of Python and this platform."""
    root = os.environ.get("FEWSHOT_BLO_WHEELS") or "~/.cache/fewshot_blo/wheels"
    kind = f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}"
    return Path(root).expanduser() / kind


def cached_wheel() -> Path | None:
    """The wheel of an earlier run; None if there is none."""
    return next(wheel_folder().glob(f"learn2learn-{VERSION}-*.whl"), None)


def build_wheel(scratch: Path) -> Path:
    """Builds learn2learn from its Cython sources and keeps the wheel."""
    print(f"building learn2learn {VERSION}: about a minute and a half", flush=True)
    source = unpack(download(scratch), scratch)
    for generated in source.glob("learn2learn/data/*.c"):
        generated.unlink()
    # It would be installed as a top-level package "tests".
    shutil.rmtree(source / "tests")
    (source / "pyproject.toml").write_text(BUILD_SYSTEM)
    # Its setup.py uses Cython only if the command line has build_ext.
    built = scratch / "built"
    pip(
        "wheel",
        "--no-deps",
        "--config-settings=--build-option=build_ext",
        f"--wheel-dir={built}",
        str(source),
    )
    return keep(next(built.glob("*.whl")))


def download(folder: Path) -> Path:
    """Downloads the source archive; pip verifies its checksum."""
    requirements = folder / "learn2learn.txt"
    requirements.write_text(f"learn2learn=={VERSION} --hash=sha256:{ARCHIVE_SHA256}\n")
    pip(
        "download",
        "--no-deps",
        "--no-binary=learn2learn",
        "--require-hashes",
        f"--requirement={requirements}",
        f"--dest={folder}",
    )
    return folder / f"learn2learn-{VERSION}.tar.gz"


def unpack(archive: Path, folder: Path) -> Path:
    """Extracts the source tree; entries outside of ``folder`` are refused."""
    with tarfile.open(archive) as entries:
        entries.extractall(folder, filter="data")
    return folder / f"learn2learn-{VERSION}"


def keep(wheel: Path) -> Path:
    """Copies a wheel to the folder of wheels atomically."""
    folder = wheel_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as copy:
        copy.write(wheel.read_bytes())
        copy.flush()
        os.fsync(copy.fileno())
    return Path(copy.name).replace(folder / wheel.name)


def pip(*arguments: str) -> None:
    """Runs pip in this environment; exits with a message if it fails."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    status = subprocess.run(command, check=False).returncode
    if status:
        sys.exit(f"pip {arguments[0]} failed with status {status}: see its output above")


if __name__ == "__main__":
    main()
