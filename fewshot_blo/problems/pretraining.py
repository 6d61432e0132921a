"""Learning features by telling all training classes apart; tasks are for testing them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from fewshot_blo.bilevel import TaskParams
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.heads import Head, LinearHead
from fewshot_blo.heads.head import Start
from fewshot_blo.heads.losses import task_cross_entropy
from fewshot_blo.kernel import BackendChoice
from fewshot_blo.kernel.precision import Precision
from fewshot_blo.problems.shared_encoder import SharedEncoder
from fewshot_blo.problems.task_heads import TaskHeads


class Pretraining(SharedEncoder):
    """outer: an encoder and one classifier of all training classes; inner: as in ``SharedEncoder``.

    ``F_t`` is the classifier's cross-entropy on the images of the task, support and query alike,
    with their class in the data set for a label; the head of a task is not in it, and serves
    validation and test. So a batch of tasks is a batch of images of T times N classes, and
    ``Unroll(0)`` gives the gradient of supervised training.

    The classifier is of the head's kind: a linear one makes this Baseline, a cosine one Baseline++.

    Source: Chen et al., "A Closer Look at Few-shot Classification" (arXiv 1904.04232); testing with
    prototypes: Chen et al., "Meta-Baseline" (arXiv 2003.04390), the first stage.

    Args:
        encoder: network from images to features, as in ``SharedEncoder``.
        head: head of the tasks in validation and test, whose kind the classifier has.
        classes: number of the training classes; 0 for those of the data, where they are known.
        features: D, number of the encoder's features.
        way: N, needed for a learned start of the head.
        prox: weight of the proximal term of the head; the head's usual one by default.
        start: where the head starts; the head's usual start by default.
        unit: divide features by their length.
        centre: subtract the mean feature of the training images, outside of training.
        backend: backend of the kernel; "auto" measures which is faster.
        precision: precision of the encoder's products.
        slices: images encoded at a time, as in ``SharedEncoder``; 0 for all.
        prove: compare the kernel with ``encoder`` itself at the first batch.

    Raises:
        ConfigurationError: if there are no classes, the head is neither linear nor cosine, or as
            ``SharedEncoder``.
    """

    def __init__(
        self,
        encoder: nn.Module,
        head: Head = LinearHead(),
        *,
        classes: int = 0,
        features: int,
        way: int | None = None,
        prox: float | None = None,
        start: Start | None = None,
        unit: bool = False,
        centre: bool = False,
        backend: BackendChoice = "auto",
        precision: Precision = "float32",
        slices: int = 0,
        prove: bool = True,
    ) -> None:
        if classes < 1:
            raise ConfigurationError(
                f"classes is {classes}: pretraining needs the number of training classes"
            )
        super().__init__(
            encoder,
            head,
            features=features,
            way=way,
            prox=prox,
            start=start,
            unit=unit,
            centre=centre,
            backend=backend,
            precision=precision,
            slices=slices,
            prove=prove,
        )
        if self.head.learned(features):
            raise ConfigurationError(
                f"pretraining has a classifier of the head's kind, and {type(self.head).__name__} "
                "is none: use a linear or a cosine head"
            )
        example = next(self.network.parameters(), torch.zeros(()))
        zeros = self.head.zeros(1, classes, example.new_zeros(1, 1, features))
        self.outer = replace(
            self.outer,
            classifier={
                name: (0.01 * torch.randn_like(p[0])).requires_grad_() for name, p in zeros.items()
            },
        )

    def _outer_loss(self, heads: TaskHeads, v: TaskParams) -> Tensor:
        """The classifier's loss on all images."""
        del v
        batch = heads.batch
        labels = torch.cat([batch.support_y, batch.query_y], 1)
        known = batch.classes.gather(1, labels.clamp(min=0)).masked_fill(labels < 0, -1)
        classifier = {
            name: p.expand(batch.tasks, *p.shape) for name, p in self.outer.classifier.items()
        }
        logits = self.head.logits(classifier, heads.features, {})
        return task_cross_entropy(logits, known, torch.zeros_like(logits[:, 0]))
