"""Trying candidates within a limit of time: what each is expected to take, and what it took."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fewshot_blo.backbones import Backbone
from fewshot_blo.evaluation.evaluate import embed
from fewshot_blo.finetune.candidates import Candidate
from fewshot_blo.finetune.cross_validation import HeldOut, adapt_to, hold_out
from fewshot_blo.finetune.images import LabelledImages
from fewshot_blo.finetune.plays import Play, Questions
from fewshot_blo.networks.views import COUNT
from fewshot_blo.records.progress import Progress


@dataclass
class Choosing:
    """Held-out answers of candidates, as many as there is time for.

    Attributes:
        data: the labelled images.
        backbone: the pretrained network.
        parts, asked: the plays and their questions.
        minutes: time for all candidates; None for no limit.
        progress: print the result of each candidate and show a progress bar.
    """

    data: LabelledImages
    backbone: Backbone
    parts: Sequence[Play]
    asked: Questions
    minutes: float | None = None
    progress: bool = True
    _embedded: dict[tuple[object, ...], Tensor] = field(default_factory=dict)
    _view: float = 0.0
    """Seconds that one view of all images takes."""
    _head: float = 0.0
    """Seconds that the plays of a head take."""

    def held_out(self, options: Sequence[Candidate]) -> list[HeldOut]:
        """Answers of the candidates, cheapest first; the first one is always tried.

        A candidate is left out if what it is expected to take, from the times measured so far, is
        more than is left. If progress is printed, Ctrl-C ends the choice among those tried.
        """
        tried, skipped = self.attempt(options, self.end())
        self.tell(skipped)
        return tried

    def end(self) -> float:
        """When the time for all candidates ends, on the clock of ``time.perf_counter``."""
        return time.perf_counter() + (math.inf if self.minutes is None else 60 * self.minutes)

    def attempt(
        self, options: Sequence[Candidate], end: float, *, needed: bool = True
    ) -> tuple[list[HeldOut], list[str]]:
        """Answers of the candidates that are tried, and names of those that are left out.

        Args:
            options: the candidates.
            end: when the time ends.
            needed: whether the first one is tried in any case.
        """
        tried: list[HeldOut] = []
        skipped = []
        with Progress("fine-tuning", len(options), "candidate", shown=self.progress) as bar:
            try:
                for candidate in options:
                    free = tried or not needed
                    left = end - time.perf_counter()
                    expected = self._expected(candidate, left) if free else 0.0
                    if free and time.perf_counter() + expected > end:
                        skipped.append(candidate.name)
                        continue
                    if free:
                        bar.figures(f"'{candidate.name}' takes about {expected:.0f} s")
                    start = time.perf_counter()
                    tried.append(self._answers(candidate))
                    bar.advance()
                    if self.parts:
                        seconds = time.perf_counter() - start
                        bar.say(f"{tried[-1].describe()}, {seconds:.1f} s")
            except KeyboardInterrupt:
                if not tried or not self.progress:
                    raise
                bar.say(interrupted(len(tried), len(options)))
        return tried, skipped

    def features(self, candidate: Candidate) -> Tensor:
        """Outputs of the network of the candidate's problem for all images, ``[M, D]``."""
        if candidate.frozen not in self._embedded:
            network = candidate.problem(self.backbone, self.data.images.shape[1:]).network
            start = time.perf_counter()
            found = embed(network, self.data.images, progress=self.progress)
            self._embedded[candidate.frozen] = found
            self._view = self._view or (time.perf_counter() - start) / COUNT[candidate.views]
        return self._embedded[candidate.frozen]

    def _answers(self, candidate: Candidate) -> HeldOut:
        problem = candidate.problem(self.backbone, self.data.images.shape[1:])
        features = self.features(candidate)
        start = time.perf_counter()
        found = hold_out(candidate, problem, features, self.data.labels, self.parts, self.asked)
        if candidate.adapts == "head":
            self._head = time.perf_counter() - start
        return found

    def _expected(self, candidate: Candidate, left: float) -> float:
        """Seconds that a candidate takes, at most ``left`` of which are spent to find out."""
        known = candidate.frozen in self._embedded
        embedding = 0.0 if known else self._view * COUNT[candidate.views]
        if candidate.adapts == "head":
            return embedding + self._head
        if embedding > left or not self.parts:
            return embedding
        # One step of one play; the plays are adapted in a batch, which is faster if anything.
        problem = candidate.problem(self.backbone, self.data.images.shape[1:])
        once = replace(candidate.inner, steps=1) if candidate.inner.most else candidate.inner
        features = self.features(candidate)
        start = time.perf_counter()
        with torch.no_grad():
            adapt_to(problem, features, self.data.labels, self.parts[:1], once)
        seconds = time.perf_counter() - start
        return seconds * max(candidate.inner.most, 1) * len(self.parts)

    def tell(self, skipped: Sequence[str]) -> None:
        """Says which candidates were left out for lack of time."""
        if not skipped:
            return
        names = ", ".join(f"'{name}'" for name in skipped)
        said = f"skipped for lack of time: {names}"
        if self.progress:
            Progress.write(said)
        else:
            warnings.warn(said, stacklevel=4)


def interrupted(tried: int, options: int) -> str:
    """What is said where Ctrl-C ends the choice."""
    return (
        f"interrupted: the best of the {tried} of {options} candidates tried so far is used; "
        "Ctrl-C again stops"
    )
