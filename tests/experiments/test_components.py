"""Components by name: a class is chosen, its settings are read, checked and written down again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from fewshot_blo.errors import ConfigurationError, nearest
from fewshot_blo.experiments.components import Component, Slot, merged, plain
from fewshot_blo.experiments.plan import Plan
from fewshot_blo.experiments.settings import SLOTS, Config, Encoder, config_from
from fewshot_blo.experiments.values import converted
from fewshot_blo.heads import CosineHead, LinearHead, RidgeHead
from fewshot_blo.hypergrad import Implicit, Penalty, Unroll
from fewshot_blo.hypergrad.linear_solve import ConjugateGradient, Neumann
from fewshot_blo.kernel import SGD, Adam, InnerSteps, Momentum
from fewshot_blo.networks import Conv4
from fewshot_blo.tasks.catalogue import Glyphs, Omniglot


class Shape:
    """What a place of its own takes."""


@dataclass(frozen=True)
class RoundShape(Shape):
    """Attributes: radius: of it."""

    radius: float = 1.0


@dataclass(frozen=True)
class FlatShape(Shape):
    """Needs a side, and may have a hole."""

    side: int
    hole: Shape | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Drawing:
    """A whole with a place."""

    shape: Shape = RoundShape(3.0)
    width: int = 4
    steps: InnerSteps = InnerSteps(7, Momentum(0.5))
    notes: Mapping[str, float] = field(default_factory=dict)


class Later(Component[Shape]):
    """Built when the scale is known."""


def scaled(scale: float, factor: float = 2.0) -> RoundShape:
    return RoundShape(scale * factor)


@dataclass(frozen=True)
class Whole:
    """A whole whose shape is built later."""

    shape: Later = Later(scaled)


HERE = {**SLOTS, Shape: Slot("shape", (RoundShape, FlatShape), ending="Shape")}
LATER = {
    Later: Slot("shape", (scaled, RoundShape), given=frozenset(("scale",)), later=Later),
}


def drawing(**tree: Any) -> Drawing:
    built: Drawing = Plan(HERE, Drawing, "", tree).build()
    return built


def test_a_component_has_one_name() -> None:
    assert drawing(shape={"name": "Flat", "side": 2}).shape == FlatShape(2)
    for round_ in ("Round", {"name": "Round"}):
        assert drawing(shape=round_).shape == RoundShape(3.0)
    with pytest.raises(ConfigurationError, match=r"'RidgeHead': .*did you mean Ridge\?"):
        config_from({"problem": {"head": "RidgeHead"}})


def test_messages_of_what_is_built_later_name_its_place() -> None:
    config = config_from({"encoder": {"name": "Conv4", "pools": 9}})
    with pytest.raises(ConfigurationError, match=r"^encoder\.pools is 9"):
        config.encoder.build(channels=1)


def test_settings_of_the_same_class_keep_the_defaults_of_where_it_is() -> None:
    assert drawing(shape={"name": "Round"}).shape == RoundShape(3.0)
    assert drawing().steps == InnerSteps(7, Momentum(0.5))
    assert drawing(steps={"steps": 2}).steps == InnerSteps(2, Momentum(0.5))
    assert drawing(steps={"rule": {"momentum": 0.1}}).steps == InnerSteps(7, Momentum(0.5, 0.1))


def test_another_class_has_its_own_defaults() -> None:
    assert drawing(shape={"name": "Flat", "side": 1}).shape == FlatShape(1)
    assert drawing(steps={"rule": "Adam"}).steps == InnerSteps(7, Adam())
    assert drawing(steps={"rule": "SGD"}).steps == InnerSteps(7, SGD())
    found = drawing(shape={"name": "Flat", "side": 1, "hole": "Round"}).shape
    assert found == FlatShape(1, RoundShape())


def test_no_default_goes_from_one_strategy_into_another() -> None:
    usual = config_from({}).strategy
    assert usual == Unroll(InnerSteps(5, SGD(0.5)))
    assert config_from({"strategy": "Unroll"}).strategy == usual
    assert config_from({"strategy": "Penalty"}).strategy == Penalty().for_training()
    assert config_from({"strategy": "Implicit"}).strategy == Implicit().for_training()
    few = config_from({"strategy": {"name": "Penalty", "inner": {"steps": 3}}}).strategy
    assert few == Penalty(InnerSteps(3)).for_training()
    solved = config_from({"strategy": {"name": "Implicit", "solve": "Neumann"}}).strategy
    assert solved == Implicit(solve=Neumann()).for_training()
    damped = config_from({"strategy": {"name": "Implicit", "solve": {"damping": 0.5}}}).strategy
    usual_solver = Implicit().for_training().solve
    assert isinstance(usual_solver, ConjugateGradient)
    own = Implicit(solve=ConjugateGradient(usual_solver.steps, 0.5))
    assert damped == own.for_training()


def test_nothing_chosen_is_the_default() -> None:
    assert config_from({}) == config_from(Config().plain())
    assert config_from({"strategy": None}) == config_from({})
    assert drawing() == Drawing()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"strategy": "Penalti"}, "strategy is 'Penalti': there is no such strategy "
         "(did you mean Penalty?); use one of Unroll, Implicit, FiniteDifference, Penalty, "
         "ValueFunction, BOME, MoreauEnvelope, SOBA, SABA, AmIGO, StocBiO, Reptile"),
        ({"problem": {"head": "ridge"}}, "problem.head is 'ridge': there is no such head (did you "
         "mean Ridge?); use one of Linear, Cosine, "),
        ({"data": "imagenet"}, "data is 'imagenet': there is no such data set"),
        ({"strategy": {"inner": {"rule": "adan"}}}, "strategy.inner.rule is 'adan': there is no "
         "such update rule (did you mean Adam?)"),
        ({"strategy": {"name": 3}}, "strategy is '3': there is no such strategy; use one of"),
    ],
)  # fmt: skip
def test_unknown_components(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        config_from(settings)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"strategy": {"name": "Penalty", "rhoo": 3}},
         "there is no setting 'strategy.rhoo' of Penalty (did you mean strategy.rho?)"),
        ({"strategy": {"rho": 3}}, "there is no setting 'strategy.rho' of Unroll"),
        ({"strategy": {"inner": {"step": 3}}},
         "there is no setting 'strategy.inner.step' (did you mean strategy.inner.steps?)"),
        ({"train": {"stepz": 3}},
         "there is no setting 'train.stepz' (did you mean train.steps?)"),
        ({"encoder": {"channels": 3}}, "there is no setting 'encoder.channels' of Conv4"),
        ({"colour": "red"}, "there is no setting 'colour'"),
    ],
)  # fmt: skip
def test_unknown_settings(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        config_from(settings)
    assert str(error.value).startswith(said)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"strategy": {"name": "Penalty", "rho": "much"}},
            "strategy.rho is 'much': it must be a number",
        ),
        ({"train": {"steps": 1.5}}, "train.steps is 1.5: "),
        ({"train": {"schedule": "steps"}}, "train.schedule is 'steps': it must be one of"),
        (
            {"episodes": {"way": [1, 2, 3]}},
            "episodes.way is '1 2 3': it must be a whole number, or two",
        ),
        ({"problem": {"learn_prox": 3}}, "problem.learn_prox is 3: "),
        ({"encoder": {"hidden": "x"}}, "encoder.hidden is 'x': it must be a whole number"),
        ({"train": 3}, "train is 3: it must be a group of settings, such as train.steps"),
        ({"data": 3}, "data is 3: it must be one of Glyphs, "),
        ({"encoder": "own"}, "encoder.function is missing: own requires it"),
    ],
)
def test_wrong_values(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        config_from(settings)
    assert str(error.value).startswith(said)
    assert "class '" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_place_that_may_be_empty() -> None:
    assert drawing(shape={"name": "Flat", "side": 1, "hole": None}).shape == FlatShape(1)
    with pytest.raises(ConfigurationError, match=r"no setting 'shape\.hole\.radius'"):
        drawing(shape={"name": "Flat", "side": 1, "hole": {"radius": 2}})
    with pytest.raises(ConfigurationError, match=r"shape\.side is missing: FlatShape requires it"):
        drawing(shape="Flat")


def test_components_that_are_built_later() -> None:
    built: Whole = Plan(LATER, Whole, "", {"shape": {"factor": 3}}).build()
    assert built.shape == Later(scaled, {"factor": 3.0})
    assert built.shape.build(scale=2.0, colour="red") == RoundShape(6.0)
    assert built.shape.changed(factor=1.0, radius=9.0).build(scale=2.0) == RoundShape(2.0)
    other: Whole = Plan(LATER, Whole, "", {"shape": "RoundShape"}).build()
    assert other.shape.build(scale=2.0) == RoundShape(1.0)
    with pytest.raises(ConfigurationError, match=r"no setting 'shape\.scale' of scaled"):
        Plan(LATER, Whole, "", {"shape": {"scale": 3}}).build()


def test_encoders_by_shorthand() -> None:
    for name, kind, setting in (
        ("timm:resnet18", "pretrained", {"network": "timm:resnet18"}),
        ("my_module:make", "own", {"function": "my_module:make"}),
    ):
        for chosen in (name, {"name": name, "size": 32}):
            encoder = config_from({"encoder": chosen}).encoder
            assert getattr(encoder.kind, "__name__", "") == kind
            assert setting.items() <= dict(encoder.settings).items()
            assert encoder.settings["size"] == (0 if isinstance(chosen, str) else 32)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"data": {"name": "Folder", "root": "a"}, "encoder": "a:b", "start_from": "c.pt"},
        {"strategy": {"name": "Implicit", "solve": "OneStep"}, "problem": {"head": "Cosine"}},
        {"strategy": {"inner": {"rule": {"name": "LearnedSGD", "per_step": True}}}},
        {"problem": {"name": "Initialization", "adapted": ["head.weight", "head.bias"]}},
        {"problem": {"name": "Pretraining", "classes": 9}, "encoder": "ResNet12"},
        {"episodes": {"shot": [1, 2]}, "train": {"rates": {"encoder": 1e-3}}, "dtype": "float64"},
    ],
)
def test_plain_data_there_and_back(settings: dict[str, Any]) -> None:
    config = config_from(settings)
    assert config_from(config.plain()) == config
    assert config_from(config.plain()).plain() == config.plain()
    assert config.plain()["strategy"]["name"] == type(config.strategy).__name__


def test_plain_data_hold_every_setting() -> None:
    small = Config(encoder=Encoder(Conv4, {"hidden": 8})).plain()
    assert small["encoder"] == {
        "name": "Conv4",
        "hidden": 8,
        "norm": "batch",
        "pools": 4,
        "downsampling": "pool",
        "mean": False,
        "steps": 0,
    }
    assert small["problem"]["head"] == {"name": "Linear"}
    flat = plain(HERE, Drawing(FlatShape(2, tags=("a",))))
    assert flat["shape"] == {"name": "Flat", "side": 2, "hole": None, "tags": ["a"]}
    assert Plan(HERE, Drawing, "", flat).build() == Drawing(FlatShape(2, tags=("a",)))


@pytest.mark.parametrize(
    ("annotation", "value", "found"),
    [
        (int | tuple[int, int], [1, 2], (1, 2)),
        (int | tuple[int, int], "3", 3),
        (float, "1e-3", 1e-3),
        (float, 2, 2.0),
        (bool | None, "null", None),
        (Literal["a", "b"], "a", "a"),
        (str | Sequence[str], ["a", "b"], ["a", "b"]),
        (Mapping[str, float], {"a": 1}, {"a": 1.0}),
    ],
)
def test_values_are_converted(annotation: Any, value: Any, found: Any) -> None:
    assert converted("place", annotation, value) == found
    assert type(converted("place", annotation, value)) is type(found)


def test_later_settings_beat_earlier_ones() -> None:
    base = {"strategy": {"name": "Penalty", "rho": 30, "inner": {"steps": 20}}, "seed": 1}
    tree, notes = merged(base, {"strategy": {"inner": {"rule": "SGD"}}, "seed": 2})
    assert tree == {
        "strategy": {"name": "Penalty", "rho": 30, "inner": {"steps": 20, "rule": "SGD"}},
        "seed": 2,
    }
    assert notes == []
    assert base["seed"] == 1, "what is laid over is left as it was"


def test_another_component_leaves_out_the_settings_of_the_one_before_and_says_so() -> None:
    base = {"strategy": {"name": "Penalty", "rho": 30, "inner": {"steps": 20}}}
    for over in ("Unroll", {"name": "Unroll"}):
        tree, notes = merged(base, {"strategy": over})
        assert tree == {"strategy": {"name": "Unroll"}}
        assert notes == ["strategy is Unroll: settings of Penalty are dropped (rho, inner)"]
    tree, notes = merged(base, {"strategy": {"name": "BOME", "inner": {"steps": 3}}})
    assert tree == {"strategy": {"name": "BOME", "inner": {"steps": 3}}}
    deep = {"problem": {"head": {"name": "Ridge", "lam": 3}}}
    tree, notes = merged(deep, {"problem": {"head": "Cosine"}})
    assert tree == {"problem": {"head": {"name": "Cosine"}}}
    assert notes == ["problem.head is Cosine: settings of Ridge are dropped (lam)"]


def test_the_same_component_keeps_its_settings() -> None:
    base = {"strategy": {"name": "Penalty", "rho": 30}}
    assert merged(base, {"strategy": "Penalty"}) == (base, [])
    assert merged({"data": "Omniglot"}, {"data": {"root": "a"}}) == (
        {"data": {"name": "Omniglot", "root": "a"}},
        [],
    )
    # There was nothing to leave out.
    assert merged({"data": "Omniglot"}, {"data": "Glyphs"})[1] == []


def test_the_nearest_name() -> None:
    assert nearest("penalti", ["Unroll", "Penalty"]) == " (did you mean Penalty?)"
    assert nearest("conv", ["Conv4", "ResNet12"]) == " (did you mean Conv4?)"
    assert nearest("xyz", ["Unroll", "Penalty"]) == ""


def test_a_configuration_of_objects() -> None:
    config = config_from({"data": {"name": "Omniglot", "size": 20}, "problem": {"head": "Cosine"}})
    assert config.data == Omniglot(size=20)
    assert config_from({}).data == Glyphs()
    assert config.problem.settings["head"] == CosineHead()
    assert config_from({}).problem.settings["head"] == LinearHead()
    ridge = config_from({"problem": {"head": {"name": "Ridge", "lam": 2}}})
    assert ridge.problem.settings["head"] == RidgeHead(lam=2.0)
