"""The settings of a run: one frozen tree of components that is what recipes and options build."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from fewshot_blo.backbones.encoders import by_shorthand, own, pretrained
from fewshot_blo.evaluation.evaluate import ADAPTATION
from fewshot_blo.experiments.components import Component, Slot, Tree, plain
from fewshot_blo.experiments.plan import Plan
from fewshot_blo.heads import HEADS, Head
from fewshot_blo.hypergrad import STRATEGIES, Strategy, Unroll
from fewshot_blo.hypergrad.linear_solve import SOLVERS, LinearSolver
from fewshot_blo.kernel import SGD, InnerSteps
from fewshot_blo.kernel.rules import RULES, UpdateRule
from fewshot_blo.networks import ENCODERS, Conv4
from fewshot_blo.problems import PROBLEMS, FewShotProblem, SharedEncoder
from fewshot_blo.records.older import settings_of_run
from fewshot_blo.tasks import Augmentation
from fewshot_blo.tasks.catalogue import DATA_SETS, DataSet, Glyphs
from fewshot_blo.training.settings import TrainSettings


class Encoder(Component[nn.Module]):
    """An encoder, built for the channels of the images."""

    place = "encoder"


class Problem(Component[FewShotProblem]):
    """A few-shot problem, built on an encoder."""

    place = "problem"


SLOTS: Mapping[Any, Slot] = {
    DataSet: Slot("data set", DATA_SETS),
    Encoder: Slot(
        "encoder",
        (*ENCODERS, pretrained, own),
        given=frozenset(("channels", "trained")),
        later=Encoder,
        also="torchvision:NAME, timm:NAME, hf:NAME or module:function of your own",
        shorthand=by_shorthand,
    ),
    Problem: Slot(
        "problem",
        PROBLEMS,
        given=frozenset(("encoder", "network", "way", "features")),
        later=Problem,
    ),
    Head: Slot("head", HEADS, ending="Head"),
    Strategy: Slot("strategy", STRATEGIES),
    UpdateRule: Slot("update rule", RULES),
    LinearSolver: Slot("linear solver", SOLVERS),
}
"""What there is to choose from, by the annotation of an argument."""


@dataclass(frozen=True)
class EpisodeSettings:
    """Which tasks.

    Attributes:
        way: N, classes a task; or an inclusive range [low, high].
        shot: K, support images a class; or a range.
        query: Q, query images a class in training; or a range.
        validation_way: N, classes a task in validation and evaluation; 0 for that of training.
        validation_shot: K, support images a class there; 0 for that of training.
        validation_query: Q, query images a class there.
        tasks: T, tasks a batch.
        seed: seed of the training tasks; validation tasks take the next seed.
    """

    way: int | tuple[int, int] = 5
    shot: int | tuple[int, int] = 1
    query: int | tuple[int, int] = 5
    validation_way: int = 0
    validation_shot: int = 0
    validation_query: int = 15
    tasks: int = 16
    seed: int = 0


@dataclass(frozen=True)
class Config:
    """Settings of a run.

    Attributes:
        data: data set.
        episodes: tasks drawn from it.
        augment: random changes of the training images.
        encoder: network from images to features; also torchvision:NAME, timm:NAME, hf:NAME, or
            module:function of your own.
        problem: what is learned.
        strategy: how the hypergradient is computed.
        adaptation: inner steps in validation and evaluation.
        train: the outer loop.
        start_from: checkpoint whose encoder training starts from; for compare also the name of a
            recipe in the same folder; empty for random weights.
        device: cpu, cuda or cuda:1; auto takes a GPU where there is one.
        dtype: floating-point type of images and parameters.
        seed: seed of the network's initial weights.
    """

    data: DataSet = Glyphs()
    episodes: EpisodeSettings = EpisodeSettings()
    augment: Augmentation = Augmentation()
    encoder: Encoder = Encoder(Conv4)
    problem: Problem = Problem(SharedEncoder)
    strategy: Strategy = Unroll(InnerSteps(5, SGD(0.5)))
    adaptation: InnerSteps = ADAPTATION
    train: TrainSettings = TrainSettings()
    start_from: str = ""
    device: str = "auto"
    dtype: Literal["float32", "float64"] = "float32"
    seed: int = 0

    def plain(self) -> Tree:
        """As plain data, from which ``config_from`` builds it again."""
        # Built once, so that every default is written down too.
        found: Tree = plain(SLOTS, config_from(plain(SLOTS, self)))
        return found


def config_from(settings: Mapping[str, Any]) -> Config:
    """The settings that plain data describe, those of earlier versions too.

    Raises:
        ConfigurationError: if a setting is unknown, or its value does not fit.
    """
    config: Config = Plan(SLOTS, Config, "", settings_of_run(settings)).build()
    return config
