"""Memory that the system, control groups and the process's own limits leave, from their files."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from pathlib import Path


def system_free(root: Path) -> int:
    """Bytes that the system, whose files are at ``root``, leaves this process; else unbounded."""
    limits = [*_available(root), *_control_group_free(root), *_process_free(root)]
    return min(limits, default=sys.maxsize)


def resident_pages(root: Path) -> tuple[int, int]:
    """Resident pages, and those of them that are of files."""
    words = next(iter(_lines(root / "proc/self/statm")), "0 0 0").split()
    return int(words[1]), int(words[2])


def _available(root: Path) -> Iterator[int]:
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _control_group_free(root: Path) -> Iterator[int]:
    """Bytes that the limit of each control group of this process leaves."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from _group_free(root / "sys/fs/cgroup", path, "memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
            yield from _group_free(root / "sys/fs/cgroup/memory", path, *names)


def _group_free(mount: Path, path: str, limit_name: str, usage_name: str) -> Iterator[int]:
    # In another namespace the path does not exist: then the mount itself is this group.
    inner = mount / path.lstrip("/")
    for group in (inner, *inner.parents):
        limit, usage = _number(group / limit_name), _number(group / usage_name)
        if limit is not None and usage is not None:
            yield limit - usage + _reclaimable(group / "memory.stat")
        if group == mount:
            return


def _reclaimable(statistics: Path) -> int:
    """Bytes of cached files, which count as used and are reclaimed first."""
    counts = dict(line.split() for line in _lines(statistics))
    return int(counts.get("total_inactive_file", counts.get("inactive_file", 0)))


def _process_free(root: Path) -> Iterator[int]:
    """Bytes that the process's own limits (``ulimit -v``, ``ulimit -d``) leave."""
    for line in _lines(root / "proc/self/statm"):
        pages = [int(count) for count in line.split()]
        for what, used in ((resource.RLIMIT_AS, pages[0]), (resource.RLIMIT_DATA, pages[5])):
            limit, _ = resource.getrlimit(what)
            if limit != resource.RLIM_INFINITY:
                yield limit - used * resource.getpagesize()


def _number(file: Path) -> int | None:
    """The number in a file; None if there is no file, or it says "max"."""
    lines = _lines(file)
    return int(lines[0]) if lines and lines[0].isdigit() else None


def _lines(file: Path) -> list[str]:
    """The lines of a system file; none if it is missing or not readable."""
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
