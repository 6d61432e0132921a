from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.machine import memory
from fewshot_blo.machine.memory import (
    SavedBytes,
    budget_bytes,
    free_bytes,
    is_out_of_memory,
    largest_chunk,
    memory_limit,
    peak_bytes,
    share_of_memory,
)
from fewshot_blo.machine.system_memory import system_free

KIB = 1024


def floats(kibibytes: int) -> Tensor:
    return torch.ones(kibibytes * KIB // 4)


def one_after_another() -> None:
    for size in (3, 5, 4):
        floats(size)


def together() -> tuple[Tensor, Tensor]:
    return floats(3), floats(5)


def views() -> Tensor:
    return floats(4).view(2, -1)[0]


def in_place() -> Tensor:
    return floats(4).add_(1).mul_(2)


def with_graph() -> None:
    x = floats(4).requires_grad_()
    y = x.exp().exp()  # both results are kept for the backward pass
    del y


@pytest.mark.parametrize(
    ("function", "kibibytes"),
    [(one_after_another, 5), (together, 8), (views, 4), (in_place, 4), (with_graph, 12)],
)
def test_peak_of_known_allocations(function, kibibytes: int) -> None:  # type: ignore[no-untyped-def]
    assert peak_bytes(function) == kibibytes * KIB


def test_what_existed_before_does_not_count() -> None:
    x = floats(64)
    assert peak_bytes(lambda: x.view(2, -1) + 1) == 64 * KIB
    assert peak_bytes(lambda: x.mul_(2)) == 0


def test_counting_starts_anew_each_time() -> None:
    assert [peak_bytes(together) for _ in range(3)] == [8 * KIB] * 3


def test_saved_bytes_count_each_storage_once() -> None:
    x = floats(4).requires_grad_()
    saved = SavedBytes()
    with saved:
        y = x.exp()  # its result is kept, which the product keeps again, beside x
        z = (y * x).sum()
    assert saved.total == 8 * KIB
    (gradient,) = torch.autograd.grad(z, x)
    assert torch.equal(gradient, (y + y * x).detach())


def test_free_memory_is_plausible() -> None:
    assert 1 << 20 < free_bytes(torch.device("cpu")) < 1 << 50


def system(root: Path, **files: str) -> Path:
    """A folder with files of a system, whose paths are given with double underscores."""
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("memory_", "memory.")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = "MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable: 8000 kB\n"
HOST = torch.device("cpu")


def test_free_memory_of_a_host_without_limits(tmp_path: Path) -> None:
    root = system(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="0::/\n")
    assert free_bytes(HOST, root) == 8000 * KIB
    assert free_bytes(HOST, tmp_path / "nothing is told") == sys.maxsize


def test_free_memory_within_control_groups(tmp_path: Path) -> None:
    root = system(
        tmp_path,
        proc__meminfo=MEMINFO,
        proc__self__cgroup="0::/jobs/one\n",
        sys__fs__cgroup__jobs__one__memory_max="max\n",
        sys__fs__cgroup__jobs__one__memory_current="5000\n",
        sys__fs__cgroup__jobs__memory_max="9000\n",
        sys__fs__cgroup__jobs__memory_current="8000\n",
        sys__fs__cgroup__jobs__memory_stat="anon 5000\ninactive_file 600\n",
    )
    assert free_bytes(HOST, root) == 9000 - 8000 + 600


@pytest.mark.parametrize("path", ["/job", "/docker/of-another-namespace"])
def test_free_memory_within_a_control_group_of_version_1(path: str, tmp_path: Path) -> None:
    group = "" if path.startswith("/docker") else "job__"
    files = {"limit_in_bytes": "7000", "usage_in_bytes": "7100", "stat": "total_inactive_file 300"}
    root = system(
        tmp_path,
        proc__self__cgroup=f"9:cpu,cpuacct:{path}\n4:memory:{path}\n0::{path}\n",
        **{f"sys__fs__cgroup__memory__{group}memory_{n}": text for n, text in files.items()},
    )
    assert free_bytes(HOST, root) == 200


def test_memory_over_the_limit_is_none_left(tmp_path: Path) -> None:
    root = system(
        tmp_path,
        proc__self__cgroup="0::/\n",
        sys__fs__cgroup__memory_max="7000\n",
        sys__fs__cgroup__memory_current="7100\n",
    )
    assert free_bytes(HOST, root) == 0


@pytest.mark.parametrize(
    ("limited", "free"), [(resource.RLIMIT_AS, 50), (resource.RLIMIT_DATA, 120)]
)
def test_free_memory_within_the_limits_of_the_process(
    limited: int, free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = system(tmp_path, proc__self__statm="100 50 1 1 0 30 0\n", proc__meminfo=MEMINFO)
    page, none = resource.getpagesize(), resource.RLIM_INFINITY
    limits = {limited: (150 * page, none)}
    monkeypatch.setattr(resource, "getrlimit", lambda what: limits.get(what, (none, none)))
    assert free_bytes(HOST, root) == free * page


# Another test's garbage or threads may return memory at any time: a program of its own has none.
_WITHIN_A_LIMIT = """
import torch
from fewshot_blo.machine.allocator import return_freed_memory
from fewshot_blo.machine.memory import free_bytes, memory_limit

HOST = torch.device("cpu")
return_freed_memory()  # As a command does that is given a limit.
with memory_limit(4.0):
    before = free_bytes(HOST)
    held = torch.ones(2**28)  # 1 GiB.
    within = free_bytes(HOST)
    del held
    after = free_bytes(HOST)
print(before - within, after - within)
"""


def test_free_memory_follows_what_a_process_with_a_limit_holds() -> None:
    words = [sys.executable, "-c", _WITHIN_A_LIMIT]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert [int(n) for n in result.stdout.split()] == pytest.approx([2**30] * 2, rel=0.05)


def test_free_memory_within_a_limit_of_the_user() -> None:
    with memory_limit(1e-3):
        assert free_bytes(HOST) <= 1e-3 * 2**30
    with memory_limit(None):
        assert free_bytes(HOST) > 0


def test_a_limit_that_is_never_reached_changes_nothing(tmp_path: Path) -> None:
    root = system(tmp_path, proc__self__statm="100 50 1 1 0 30 0\n", proc__meminfo=MEMINFO)
    unlimited = free_bytes(HOST, root)
    with memory_limit(1e6):
        assert free_bytes(HOST, root) == unlimited


@pytest.mark.parametrize("gibibytes", [0.0, -1.0, float("nan")])
def test_memory_limits_that_make_no_sense(gibibytes: float) -> None:
    with pytest.raises(ConfigurationError, match="the memory limit is"), memory_limit(gibibytes):
        pass


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (OSError("Cannot allocate memory"), False),
    ],
)
def test_out_of_memory_errors(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


@given(
    bytes_per_task=st.integers(0, 1000), tasks=st.integers(1, 100), budget=st.integers(0, 100_000)
)
def test_largest_chunk_fits_and_is_even(bytes_per_task: int, tasks: int, budget: int) -> None:
    chunk = largest_chunk(bytes_per_task, tasks, budget)
    assert 1 <= chunk <= tasks
    assert chunk == 1 or chunk * bytes_per_task <= budget
    fitting = max(1, min(tasks, budget // max(bytes_per_task, 1)))
    chunks = -(-tasks // chunk)
    assert chunks == -(-tasks // fitting)  # as few chunks as can be
    assert tasks - (chunks - 1) * chunk > 0
    assert chunk == 1 or (chunk - 1) * chunks < tasks  # and no larger than those need


def test_chunks_are_evened_out() -> None:
    assert largest_chunk(10, 10, 80) == 5


def test_a_computation_may_take_half_of_what_the_system_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = 2**30 // resource.getpagesize()
    root = system(
        tmp_path,
        proc__meminfo=MEMINFO,
        proc__self__cgroup="0::/\n",
        proc__self__statm=f"{pages} {pages} 0 0 0 0 0\n",
    )
    assert budget_bytes(HOST, root) == 4000 * KIB
    # Of the user's own limit, what is held already is gone.
    monkeypatch.setattr("fewshot_blo.machine.memory.kept_bytes", lambda: 0)
    with memory_limit((2**30 + 1000 * KIB) / 2**30):
        assert budget_bytes(HOST, root) == 800 * KIB
    with memory_limit(1e6):
        assert budget_bytes(HOST, root) == 4000 * KIB
    with memory_limit(1e-9):
        assert budget_bytes(HOST, root) == 0


def test_files_that_are_mapped_later_are_not_of_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several processes may map one file of images, which is larger than the share of each."""
    monkeypatch.setattr("fewshot_blo.machine.memory.kept_bytes", lambda: 0)
    page = resource.getpagesize()
    root = system(tmp_path, proc__meminfo=MEMINFO)
    with memory_limit(100 * page / 2**30):
        assert memory._limit_free(root) == 100 * page
        before = memory._mapped.get()
        (root / "proc/self").mkdir(parents=True)
        (root / "proc/self/statm").write_text(f"0 {before + 1030} {before + 1000} 0 0 0 0\n")
        assert memory._limit_free(root) == (70 - before) * page


def test_processes_share_what_is_free(tmp_path: Path) -> None:
    root = system(tmp_path, proc__meminfo=MEMINFO)
    free = system_free(root) / 2**30
    assert share_of_memory(4, root) == pytest.approx(free / 4)
    with memory_limit(free / 2):
        assert share_of_memory(4, root) == pytest.approx(free / 8)


def test_a_recording_takes_memory_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fewshot_blo.machine.memory.free_bytes", lambda device: 1000)
    assert budget_bytes(torch.device("cuda")) == 800
    assert budget_bytes(torch.device("cuda"), recorded=True) == 400
