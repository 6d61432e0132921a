"""``Pretraining``: learning features by classifying all training classes (Baseline)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from fewshot_blo.bilevel import TaskParams
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.heads import Head, LinearHead
from fewshot_blo.heads.head import Start
from fewshot_blo.kernel import BackendChoice
from fewshot_blo.kernel.precision import Precision
from fewshot_blo.objectives.cross_entropy import task_cross_entropy
from fewshot_blo.problems.shared_encoder import SharedEncoder
from fewshot_blo.problems.task_heads import TaskHeads
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Counting, Natural, NonNegative


@checked
class Pretraining(SharedEncoder):
    """Learns an encoder by classifying all training classes, as in supervised training.

    Outer: an encoder and one classifier of all training classes; inner: as in ``SharedEncoder``.
    ``F_t`` is the classifier's cross-entropy on all images of the task, support and query, with
    their data set classes as labels. It does not depend on the task's head, which is only used in
    validation and test. So a batch of tasks is a batch of images of T times N classes, and
    ``Unroll(0)`` gives the gradient of supervised training.

    The classifier has the type of the head: linear for Baseline, cosine for Baseline++.

    Source: Chen et al., "A Closer Look at Few-shot Classification" (arXiv 1904.04232); testing with
    prototypes: Chen et al., "Meta-Baseline" (arXiv 2003.04390), the first stage.

    Args:
        encoder: network from images to features, as in ``SharedEncoder``.
        head: head of the tasks in validation and test; the classifier has the same type.
        classes: number of training classes; 0 takes it from the data, where that is known.
        features: D, number of the encoder's features.
        way: N, number of classes in a task, needed for a learned start of the head.
        prox: weight of the head's proximal term; the head's default if not given.
        start: initial parameters of the head; the head's default if not given.
        unit: normalize features to unit length.
        centre: subtract the mean feature of the training images, outside of training.
        backend: how the encoder's forward pass runs for the tasks of a batch; "auto" chooses at the
            first batch.
        precision: number format of the encoder's matrix products and convolutions.
        slices: number of images encoded at a time, as in ``SharedEncoder``; 0 for all.
        prove: compare the kernel with ``encoder`` itself at the first batch.

    Raises:
        ConfigurationError: if ``classes`` is below 1, the head is neither linear nor cosine, or as
            in ``SharedEncoder``.
    """

    def __init__(
        self,
        encoder: nn.Module,
        head: Head = LinearHead(),
        *,
        classes: Natural = 0,
        features: Counting,
        way: Counting | None = None,
        prox: NonNegative | None = None,
        start: Start | None = None,
        unit: bool = False,
        centre: bool = False,
        backend: BackendChoice = "auto",
        precision: Precision = "float32",
        slices: Natural = 0,
        prove: bool = True,
    ) -> None:
        if classes < 1:
            raise ConfigurationError(
                f"classes is {classes}: it must be the number of training classes"
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
                f"{type(self.head).__name__} cannot be the classifier of pretraining: use a linear "
                "or a cosine head"
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
