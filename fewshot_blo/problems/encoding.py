"""``Encoding``: features of the tasks' images from a shared encoder, under a norm mode."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewshot_blo.bilevel import Params
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.kernel import Forward
from fewshot_blo.kernel.statistics import uses_batch_statistics
from fewshot_blo.networks.views import ImageViews
from fewshot_blo.problems.few_shot import (
    NormMode,
    joint_forward,
    query_forward,
    real_rows,
    task_keys,
)
from fewshot_blo.problems.slices import in_slices
from fewshot_blo.tasks import TaskBatch
from fewshot_blo.tasks.inputs import joined


@dataclass(frozen=True)
class Encoding:
    """An encoder that all tasks share.

    Attributes:
        forward: forward pass of the encoder.
        parameters: parameters of the encoder.
        slices: number of images encoded at a time; 0 for all.
        views: views of an image, over whose features the mean is taken. The first views of all
            images are encoded as one batch of tasks, then the second: batch statistics never mix
            views.
    """

    forward: Forward
    parameters: Params
    slices: int
    views: ImageViews

    def __call__(
        self, batch: TaskBatch, norm: NormMode, keys: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Features of the support sets ``[T, N*K, D]`` and of the query sets ``[T, N*Q, D]``."""
        if self.views.views == "one":
            return self._encoded(batch, norm, keys)
        seen = [self._encoded(view, norm, keys) for view in self._views(batch)]
        support, query = (torch.stack(parts).mean(0) for parts in zip(*seen, strict=True))
        return support, query

    def _views(self, batch: TaskBatch) -> Iterator[TaskBatch]:
        """The tasks with each view of their images in turn."""
        if not isinstance(batch.support_x, Tensor) or batch.support_x.ndim != 5:
            raise ConfigurationError(
                f"views is {self.views.views}, but the inputs are no images ({batch!r}): set views "
                "to one"
            )
        support, query = (
            self.views(x.flatten(0, 1)).unflatten(0, (*x.shape[:2], -1)).unbind(2)
            for x in (batch.support_x, batch.query_x)
        )
        for support_x, query_x in zip(support, query, strict=True):
            view = replace(batch, support_x=support_x, query_x=query_x)
            yield view.known(padded=batch.padded)

    def _encoded(
        self, batch: TaskBatch, norm: NormMode, keys: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        forward, parameters = self.forward, self.parameters
        support_keys, query_keys = task_keys(batch, keys)
        if self.slices:
            both = joined(batch.support_x, batch.query_x, dim=1)
            features = in_slices(forward, parameters, both, self.slices, support_keys)
            sizes = [batch.support_y.shape[1], batch.query_y.shape[1]]
            support, query = torch.split(features, sizes, 1)
            return support, query
        if norm == "support" and uses_batch_statistics(forward.network):
            return joint_forward(forward, {}, parameters, batch, query_keys)
        support = forward(
            {},
            parameters,
            batch.support_x,
            rows=real_rows(batch, batch.support_rows),
            running=norm == "running",
            keys=support_keys,
        )
        return support, query_forward(forward, {}, parameters, batch, norm, query_keys)
