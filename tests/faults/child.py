"""Runs a function in a forked process whose writes to a folder fail at a chosen moment."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["kill", "torn", "full", "read-only"]
_ERRORS = {"full": errno.ENOSPC, "read-only": errno.EROFS}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND
_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")


@dataclass(frozen=True)
class Fault:
    """What happens at a write.

    Attributes:
        kind: the process is killed before the write; or killed with half of what it wrote last;
            or this write and all later ones fail, as on a full disk or a read-only one.
        at: number of the write, from 0.
    """

    kind: Kind
    at: int


@dataclass(frozen=True)
class Ended:
    """How the process ended.

    Attributes:
        status: exit status; minus the signal that ended it.
        writes: number of writes to the folder.
        text: what it printed.
    """

    status: int
    writes: int
    text: str


@dataclass(frozen=True)
class Child:
    """A process that was started.

    Attributes:
        number: its process id.
        said, counted: files of what it printed and how often it wrote.
    """

    number: int
    said: Path
    counted: Path

    def wait(self) -> Ended:
        """Waits for its end."""
        _, ended = os.waitpid(self.number, 0)
        writes = int(self.counted.read_text()) if self.counted.exists() else 0
        text = self.said.read_text(errors="replace") if self.said.exists() else ""
        return Ended(os.waitstatus_to_exitcode(ended), writes, text)


def in_child(function: Callable[[], int], folder: Path, fault: Fault | None = None) -> Ended:
    """Runs the function in a forked process.

    Args:
        function: returns the exit status.
        folder: the writes to what lies in it are counted.
        fault: what happens at one of them, if anything.
    """
    return start(function, folder, fault).wait()


def start(
    function: Callable[[], int], folder: Path, fault: Fault | None = None, name: str = "child"
) -> Child:
    """As ``in_child``, without waiting.

    Args:
        function, folder, fault: as there.
        name: of the process, for its files beside the folder.
    """
    said, counted = folder.with_name(f"{name}-said"), folder.with_name(f"{name}-counted")
    for file in (said, counted):
        file.unlink(missing_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    number = os.fork()
    if not number:
        _run(function, folder, fault, said, counted)
    return Child(number, said, counted)


def _run(
    function: Callable[[], int], folder: Path, fault: Fault | None, said: Path, counted: Path
) -> None:
    """The child: it never returns."""
    output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    watch = _Watch(folder, fault)
    sys.addaudithook(watch.event)
    status = 70
    try:
        status = function()
    except BaseException:
        traceback.print_exc()
    finally:
        watch.fault = None
        counted.write_text(str(watch.writes))
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


class _Watch:
    """Counts the writes to a folder, and lets one of them fail."""

    def __init__(self, folder: Path, fault: Fault | None) -> None:
        self.folder, self.fault, self.writes = str(folder.resolve()) + os.sep, fault, 0
        self.last: tuple[Path, int] | None = None

    def event(self, name: str, args: tuple[Any, ...]) -> None:
        path = self._path(name, args)
        if path is None:
            return
        number, self.writes = self.writes, self.writes + 1
        fault = self.fault
        if fault and number >= fault.at:
            if fault.kind in _ERRORS:
                code = _ERRORS[fault.kind]
                raise OSError(code, os.strerror(code), path)
            self._die(torn=fault.kind == "torn")
        if name == "open":
            file = Path(path)
            self.last = file, file.stat().st_size if file.exists() else 0

    def _path(self, name: str, args: tuple[Any, ...]) -> str | None:
        """The path in the folder that an event writes to."""
        if name == "open":
            if not isinstance(args[0], str) or not args[2] & _WRITES:
                return None
        elif name not in _CHANGES:
            return None
        path = str(Path(args[0]).absolute()) if isinstance(args[0], str) else ""
        return path if path.startswith(self.folder) else None

    def _die(self, *, torn: bool) -> None:
        self.fault = None  # Cutting a file is a write too.
        if torn and self.last and self.last[0].exists():
            file, before = self.last
            os.truncate(file, before + (file.stat().st_size - before) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
