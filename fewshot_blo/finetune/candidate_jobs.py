"""Candidates tried by several processes of one machine.

There are few candidates, and all of them need all images, so that machines have nothing to share:
there are jobs, and no shards.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fewshot_blo.backbones import Backbone
from fewshot_blo.finetune.candidates import Candidate
from fewshot_blo.finetune.choosing import Choosing, interrupted
from fewshot_blo.finetune.cross_validation import HeldOut
from fewshot_blo.finetune.images import LabelledImages
from fewshot_blo.finetune.plays import Play, Questions
from fewshot_blo.records.jobs import run_jobs
from fewshot_blo.records.progress import Progress

Group = tuple[Sequence[Candidate], bool]
"""Candidates that share frozen features, and whether the first one is tried in any case."""
Attempt = tuple[list[HeldOut], list[str]]


def held_out_by_jobs(choosing: Choosing, options: Sequence[Candidate], jobs: int) -> list[HeldOut]:
    """As ``Choosing.held_out``, by several processes, in the order of the options.

    The images are held once: all processes map one file of them, which is removed in the end.

    Args:
        choosing: the choice.
        options: the candidates.
        jobs: number of processes.
    """
    by_features: dict[tuple[object, ...], list[Candidate]] = {}
    for candidate in options:
        by_features.setdefault(candidate.frozen, []).append(candidate)
    groups = [(group, not place) for place, group in enumerate(by_features.values())]
    tried: list[HeldOut] = []
    skipped: list[str] = []
    with tempfile.TemporaryDirectory(prefix="fewshot_blo-") as folder:
        make = partial(_attempts, *_sent(choosing, Path(folder) / "images"), choosing.end())
        found = run_jobs(make, groups, jobs, progress=choosing.progress)
        with closing(found):
            try:
                for _, (held_out, left_out) in found:
                    tried += held_out
                    skipped += left_out
            except KeyboardInterrupt:
                if not tried or not choosing.progress:
                    raise
                Progress.write(interrupted(len(tried), len(options)))
    choosing.tell([c.name for c in options if c.name in skipped])
    # With the objects of this process, a saved classifier is the same byte by byte.
    by_name = {found.candidate.name: found for found in tried}
    return [
        replace(by_name[option.name], candidate=option, asked=choosing.asked)
        for option in options
        if option.name in by_name
    ]


def _sent(
    choosing: Choosing, file: Path
) -> tuple[Path, Tensor, LabelledImages, Backbone, Sequence[Play], Questions, bool]:
    """What a process needs; the images are in a file."""
    images = choosing.data.images
    images.cpu().contiguous().numpy().tofile(file)
    like = images.new_empty(0, *images.shape[1:], device="cpu")
    data = replace(choosing.data, images=like, held_out=None)
    shared = (choosing.backbone, choosing.parts, choosing.asked, choosing.progress)
    return file, like, data, *shared


def _attempts(
    file: Path,
    like: Tensor,
    data: LabelledImages,
    backbone: Backbone,
    parts: Sequence[Play],
    asked: Questions,
    progress: bool,
    end: float,
) -> Callable[[Group], Attempt]:
    shape = (len(data.labels), *like.shape[1:])
    mapped = np.memmap(file, like.numpy().dtype, mode="c", shape=shape)
    data = replace(data, images=torch.from_numpy(mapped))
    choosing = Choosing(data, backbone, parts, asked, progress=progress)

    def attempt(group: Group) -> Attempt:
        options, needed = group
        return choosing.attempt(options, end, needed=needed)

    return attempt
