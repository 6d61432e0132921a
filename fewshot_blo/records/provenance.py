"""``provenance``: command, code version, libraries and machine of a run."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import torch


def provenance(device: torch.device, **further: str) -> dict[str, str | int]:
    """Provenance of a run as plain data; ``further`` adds entries."""
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": _device_name(device),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        **further,
    }


def provenance_of_all(parts: Sequence[Mapping[str, str | int]]) -> dict[str, str | int]:
    """One provenance of what several processes measured together.

    Time and command are those of the first part. Of other entries, such as the commit, all values
    are listed, separated by commas.
    """
    found = dict(parts[0])
    for name in found.keys() - {"time", "command"}:
        values = list(dict.fromkeys(str(part.get(name, "unknown")) for part in parts))
        if len(values) > 1:
            found[name] = ", ".join(values)
    return found


def launch() -> str:
    """What the attempts of one call of ``torchrun`` share; empty for another start."""
    number = os.environ.get("TORCHELASTIC_RUN_ID", "")
    # Users choose the number, and may choose it again.
    return f"{number}@{platform.node()}:{os.getppid()}" if number else ""


def _commit() -> str:
    """The commit of the checkout that contains this file, else the installed version."""
    try:
        _git("ls-files", "--error-unmatch", __file__)
        commit = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        try:
            return f"version {metadata.version('fewshot_blo')}"
        except metadata.PackageNotFoundError:
            return "unknown"
    return f"{commit} with uncommitted changes" if changed else commit


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()
