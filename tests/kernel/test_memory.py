from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fewshot_blo.kernel.memory import free_bytes, largest_chunk, peak_bytes

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


def test_free_memory_is_plausible() -> None:
    assert 1 << 20 < free_bytes(torch.device("cpu")) < 1 << 50


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
