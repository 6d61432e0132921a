"""``Prefetch``: on a GPU, draws the next batch of tasks while a step computes."""

from __future__ import annotations

import torch

from fewshot_blo.tasks import TaskBatch, TaskSource


class Prefetch:
    """Batches of tasks by index; on a GPU the next one can be drawn while a step computes.

    Once the kernels of a step are queued on the GPU, the CPU draws classes and images, and a
    separate CUDA stream gathers and scales them. On the CPU ``ahead`` does nothing: the step uses
    the processor, and drawing takes about a thousandth of its time.

    Args:
        source: source of the batches.
        device: device of the steps.
    """

    def __init__(self, source: TaskSource, device: torch.device) -> None:
        self._source = source
        self._drawn: tuple[int, TaskBatch] | None = None
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            # High priority: otherwise the few kernels that draw wait for all those of the step.
            self._stream = torch.cuda.Stream(device, priority=-1)
            self._stream.wait_stream(torch.cuda.current_stream(device))

    def ahead(self, index: int) -> None:
        """Draws the batch that ``batch`` will return next."""
        if self._stream is not None:
            with torch.cuda.stream(self._stream):
                self._drawn = index, self._source.batch(index)

    def batch(self, index: int) -> TaskBatch:
        """The index-th batch of tasks."""
        drawn, self._drawn = self._drawn, None
        if drawn is None or drawn[0] != index:
            return self._source.batch(index)
        assert self._stream is not None
        current = torch.cuda.current_stream(self._stream.device)
        current.wait_stream(self._stream)
        for tensor in (*drawn[1].flat.values(), drawn[1].support_rows, drawn[1].query_rows):
            if tensor.is_cuda:
                tensor.record_stream(current)  # Its memory is not reused before the step ends.
        return drawn[1]
