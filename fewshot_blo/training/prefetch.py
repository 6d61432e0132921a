"""Drawing the next batch of tasks while a step computes."""

from __future__ import annotations

from dataclasses import fields

import torch

from fewshot_blo.tasks import TaskBatch, TaskSource


class Prefetch:
    """Batches of tasks by index; on a GPU the next one can be drawn while a step computes.

    A GPU works through a step on its own once the host has queued it: meanwhile the host draws
    classes and images, and a stream of its own gathers and scales them. On the host ``ahead`` does
    nothing: the processor is busy with the step, of which drawing takes some thousandth.

    Args:
        source: of the batches.
        device: that the steps are computed on.
    """

    def __init__(self, source: TaskSource, device: torch.device) -> None:
        self._source = source
        self._drawn: tuple[int, TaskBatch] | None = None
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            # Ahead of the step's kernels, or the few that draw would wait for all of these.
            self._stream = torch.cuda.Stream(device, priority=-1)
            self._stream.wait_stream(torch.cuda.current_stream(device))

    def ahead(self, index: int) -> None:
        """Draws a batch that will be asked for next."""
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
        for field in fields(drawn[1]):
            tensor = getattr(drawn[1], field.name)
            if tensor.is_cuda:
                tensor.record_stream(current)  # Its memory is free when the step is done with it.
        return drawn[1]
