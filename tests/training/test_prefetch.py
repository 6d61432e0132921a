from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from small_runs import make_dataset, make_sampler
from torch import Tensor

from fewshot_blo.tasks import EpisodicSampler, TaskBatch
from fewshot_blo.training.prefetch import Prefetch


class Recording(EpisodicSampler):
    """Three tasks a batch; remembers which batches were drawn, and fails at one."""

    def __init__(self, device: str, fail_at: int = -1) -> None:
        super().__init__(make_dataset(), way=3, shot=1, query=(1, 2), tasks=3, device=device)
        self.drawn: list[int] = []
        self.fail_at = fail_at

    def batch(self, index: int, embeddings: Tensor | None = None) -> TaskBatch:
        if index == self.fail_at:
            raise OSError("the disk of batch 1 is gone")
        self.drawn.append(index)
        return super().batch(index, embeddings)


def assert_same_batch(a: TaskBatch, b: TaskBatch) -> None:
    for field in fields(TaskBatch):
        assert torch.equal(getattr(a, field.name).cpu(), getattr(b, field.name).cpu())


def test_on_the_host_batches_are_drawn_when_asked_for() -> None:
    source = Recording("cpu")
    batches = Prefetch(source, torch.device("cpu"))
    for index in (0, 1, 5):
        assert_same_batch(
            batches.batch(index), make_sampler(make_dataset(), query=(1, 2)).batch(index)
        )
        batches.ahead(index + 1)
        assert source.drawn[-1] == index


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible to PyTorch")
def test_on_a_device_the_next_batch_is_drawn_ahead() -> None:
    expected, source = Recording("cpu"), Recording("cuda")
    batches = Prefetch(source, torch.device("cuda"))
    for index in range(4):
        batch = batches.batch(index)
        batches.ahead(index + 1)
        assert source.drawn == list(range(index + 2))
        assert_same_batch(batch, expected.batch(index))
    assert_same_batch(batches.batch(9), expected.batch(9))
    assert source.drawn[-1] == 9


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible to PyTorch")
def test_an_error_of_the_source_is_raised_as_it_is() -> None:
    batches = Prefetch(Recording("cuda", fail_at=1), torch.device("cuda"))
    batches.batch(0)
    with pytest.raises(OSError, match="the disk of batch 1 is gone"):
        batches.ahead(1)
