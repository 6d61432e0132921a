"""``EpisodicSampler``: N-way K-shot tasks as a pure function of a seed and an index."""

from __future__ import annotations

import torch

from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Counting, Natural, Way
from fewshot_blo.tasks.augmentation import Augmentation
from fewshot_blo.tasks.class_sampler import ClassSampler
from fewshot_blo.tasks.dataset import ClassDataset
from fewshot_blo.tasks.protocols.episodic import Episodic
from fewshot_blo.tasks.protocols.protocol import ascending


@checked
class EpisodicSampler(ClassSampler):
    """Draws N-way K-shot tasks with Q queries per class from a data set.

    Task ``i`` depends only on ``(seed, i)``, not on batch size, device, number of processes or
    earlier draws. Batch ``b`` holds tasks ``b*T`` to ``b*T + T - 1``. The classes of a task are
    distinct and so are its images: support and query sets never overlap. With ranges of sizes,
    tasks are padded to the upper ends of the ranges, with equally many rows for each class.

    Args:
        dataset: classes to draw from; images are gathered on its device.
        way: N, number of classes in a task, or an inclusive range to draw it from for each task.
        shot: K, number of support examples per class, or a range; equal for all classes of a task.
        query: Q, number of query examples per class, or a range; equal for all classes of a task.
        tasks: T, number of tasks in a batch.
        seed: seed of the tasks, at least 0.
        device: device of the batches; the data set's device by default.
        dtype: floating-point dtype of the images, which are scaled to [0, 1].
        augment: random augmentation of each image, for training; it also depends only on
            ``(seed, i)``.

    Raises:
        DataError: if a range is not ascending, ``dtype`` is not floating-point, the images do not
            suit ``augment``, or the data set has too few classes or images.
    """

    def __init__(
        self,
        dataset: ClassDataset,
        *,
        way: Way | tuple[Way, Way],
        shot: Counting | tuple[Counting, Counting],
        query: Counting | tuple[Counting, Counting],
        tasks: Counting,
        seed: Natural = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        augment: Augmentation | None = None,
    ) -> None:
        super().__init__(
            dataset,
            Episodic(way, shot, query),
            tasks=tasks,
            seed=seed,
            device=device,
            dtype=dtype,
            augment=augment,
        )
        self.way, self.shot, self.query = (
            ascending("way", way),
            ascending("shot", shot),
            ascending("query", query),
        )
