"""``Config``, the settings of a run, which recipes and the command line build."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

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
from fewshot_blo.objectives import LOSSES, METRICS, AnyLoss, Metric
from fewshot_blo.problems import PROBLEMS, FewShotProblem, SharedEncoder
from fewshot_blo.records.checked import checked
from fewshot_blo.records.older import settings_of_run
from fewshot_blo.records.ranges import AtLeast, Counting, Natural, Way
from fewshot_blo.tasks import Augmentation, protocols
from fewshot_blo.tasks.catalogue import DATA_SETS, DataSet, Glyphs
from fewshot_blo.tasks.families import FAMILIES, Family
from fewshot_blo.training.settings import TrainSettings


class Encoder(Component[nn.Module]):
    """An encoder with its settings; it is built once the shape of the inputs is known."""

    place = "encoder"


class Problem(Component[FewShotProblem]):
    """A few-shot problem with its settings; it is built once its encoder is."""

    place = "problem"


class Protocol(Component[protocols.Protocol]):
    """A protocol with its settings; it is built once way, shot and query are known."""

    place = "episodes.protocol"


def _for_training(kind: Callable[..., Strategy]) -> Strategy | None:
    """A strategy with the usual settings of training; None if some of them have no default."""
    arguments = inspect.signature(kind).parameters.values()
    if any(argument.default is argument.empty for argument in arguments):
        return None
    return kind().for_training()


SLOTS: Mapping[Any, Slot] = {
    DataSet: Slot("data set", DATA_SETS),
    Encoder: Slot(
        "encoder",
        (*ENCODERS, pretrained, own),
        given=frozenset(("channels", "shape", "trained")),
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
    Protocol: Slot(
        "protocol",
        protocols.PROTOCOLS,
        given=frozenset(("way", "shot", "query")),
        later=Protocol,
    ),
    Head: Slot("head", HEADS, ending="Head"),
    Strategy: Slot("strategy", STRATEGIES, usual=_for_training),
    AnyLoss: Slot("loss", LOSSES),
    Metric: Slot("metric", METRICS),
    Family: Slot("family", FAMILIES),
    UpdateRule: Slot("update rule", RULES),
    LinearSolver: Slot("linear solver", SOLVERS),
}
"""The components to choose from, by the annotation of the argument that takes one."""


@checked
@dataclass(frozen=True)
class EpisodeSettings:
    """Shapes, number and seed of the tasks.

    Attributes:
        way: N, classes per task, if it has any; or an inclusive range [low, high].
        shot: K, support examples per class, or per task without classes; or a range.
        query: Q, query examples in training, as shot; or a range.
        validation_way: N, classes per task in validation and evaluation; 0 for that of training.
        validation_shot: K, support examples per class in validation and evaluation; 0 for that of
            training.
        validation_query: Q, query examples per class in validation and evaluation.
        protocol: how tasks are drawn from the classes; protocols other than Episodic have settings
            of their own, and take of way, shot and query what they need.
        tasks: T, tasks per batch.
        seed: seed of the training tasks; validation tasks use the next seed.
    """

    way: Way | tuple[Way, Way] = 5
    shot: Counting | tuple[Counting, Counting] = 1
    query: Counting | tuple[Counting, Counting] = 5
    validation_way: Natural = 0
    validation_shot: Natural = 0
    validation_query: Counting = 15
    protocol: Protocol = Protocol(protocols.Episodic)
    tasks: Counting = 16
    seed: Annotated[int, AtLeast(-1)] = 0  # One below that of an evaluation.

    def drawn(self, *, training: bool) -> protocols.Protocol:
        """The protocol of training, or of validation and evaluation.

        Raises:
            ConfigurationError: if way, shot or query do not suit the protocol.
        """
        return self.protocol.build(**self.sizes(training=training))

    def sizes(self, *, training: bool) -> Mapping[str, int | tuple[int, int]]:
        """Way, shot and query of training, or of validation and evaluation."""
        if training:
            return {"way": self.way, "shot": self.shot, "query": self.query}
        way, shot = self.validation_way or self.way, self.validation_shot or self.shot
        return {"way": way, "shot": shot, "query": self.validation_query}


@checked
@dataclass(frozen=True)
class Config:
    """Settings of a run.

    Attributes:
        data: data set.
        episodes: tasks drawn from the data set.
        augment: data augmentation of the training images.
        encoder: network from images to features; also torchvision:NAME, timm:NAME, hf:NAME, or
            module:function of your own.
        problem: few-shot problem: which parameters are outer variables and which adapt to a task.
        strategy: how the hypergradient is computed.
        adaptation: inner steps in validation and evaluation.
        train: settings of the outer loop.
        start_from: checkpoint whose encoder training starts from; for compare also the name of a
            recipe in the same folder; empty for random weights.
        device: cpu, cuda or cuda:1; auto uses a GPU if there is one.
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
    seed: Natural = 0

    def __post_init__(self) -> None:
        # Settings that are unset are those of today: a checkpoint has to keep them.
        object.__setattr__(self, "strategy", self.strategy.for_training())

    def plain(self) -> Tree:
        """The settings as plain data, including defaults; the inverse of ``config_from``."""
        # Built once, so that every default is included.
        found: Tree = plain(SLOTS, config_from(plain(SLOTS, self)))
        return found


def config_from(settings: Mapping[str, Any]) -> Config:
    """Builds the settings from plain data, in the present form or that of earlier versions.

    Raises:
        ConfigurationError: if a setting is unknown, or its value is invalid.
    """
    config: Config = Plan(SLOTS, Config, "", settings_of_run(settings)).build()
    return config
