"""Settings and states of earlier versions, given as plain data, in today's form."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small_runs import make_folder

from fewshot_blo.errors import CheckpointError, ConfigurationError
from fewshot_blo.experiments.problem import build_problem
from fewshot_blo.experiments.recipes import read_recipe
from fewshot_blo.experiments.settings import Config, Encoder, Problem, config_from
from fewshot_blo.experiments.training import train_from_config
from fewshot_blo.hypergrad import BOME, Implicit, Penalty, Reptile, Strategy, Unroll, ValueFunction
from fewshot_blo.hypergrad.linear_solve import ConjugateGradient, Neumann, OneStep
from fewshot_blo.kernel import SGD, Adam, InnerSteps, LearnedSGD, Momentum
from fewshot_blo.networks import NARROW, Conv4, ResNet12, WideResNet
from fewshot_blo.records.older import is_flat, settings_of_run, state_of_strategy
from fewshot_blo.tasks.any_data_set import ImageDataSet
from fewshot_blo.tasks.catalogue import CIFARFS, FC100, Folder, Glyphs, Omniglot
from fewshot_blo.training.checkpoint import load
from fewshot_blo.training.run import LAST

ROOT = Path(__file__).resolve().parents[2]
# Every setting of the earlier form with its default, beside the groups that are as they were.
DEFAULTS: dict[str, dict[str, Any]] = {
    "data": {
        "name": "glyphs", "root": "", "split": "vinyals", "rotations": True, "mirrors": False,
        "size": 0, "csv": "", "seed": 0, "color": True, "download": False,
    },
    "problem": {
        "name": "shared_encoder", "network": "conv4", "weights": "", "input_size": 0,
        "sharpen": 0.0, "hidden": 64, "pools": 4, "norm": "batch", "drop_block": 0,
        "drop_rate": 0.1, "prox": None, "classes": 0, "start_from": "", "learn_prox": False,
        "head": "linear", "start": None, "unit": False, "centre": False, "scale": 10.0,
        "lam": 1.0, "margin_weight": 1.0, "adapt": "all", "step_sizes": "tensor",
        "backend": "auto", "prove": True, "slices": 0, "precision": "float32",
    },
    "strategy": {
        "name": "unroll", "first_order": False, "first_order_steps": 0, "multi_step": 0,
        "truncate": -1, "recompute": None, "solver": "cg", "solver_steps": 5,
        "solver_step_size": 0.0, "damping": 0.0, "rho": 1e-2, "lam": None, "epsilon": 1e-2,
        "multiplier": 1e-4, "rho_growth": 1.1, "lam_decay": 0.9, "epsilon_decay": 0.9,
        "value_steps": 20, "lam_growth": 0.0, "lam_max": float("inf"), "continued": False,
        "eta": 0.5, "query_weight": 0.5,
    },
    "inner": {"steps": 5, "rule": "sgd", "step_size": 0.5},
    "adaptation": {"steps": 10, "rule": "sgd", "step_size": 0.5},
}  # fmt: skip


def flat(**changes: Any) -> dict[str, Any]:
    """Whole settings of the earlier form; ``problem__hidden`` is that of a section."""
    tree = {section: dict(values) for section, values in DEFAULTS.items()}
    for name, value in changes.items():
        section, _, setting = name.partition("__")
        assert setting in tree[section]
        tree[section][setting] = value
    return tree


def today(**changes: Any) -> Config:
    return config_from(flat(**changes))


def test_the_defaults_are_todays() -> None:
    assert config_from(flat()) == config_from(Config().plain())
    assert config_from({"inner": {}}) == config_from(Config().plain())


def test_a_setting_of_each_section_makes_the_form() -> None:
    assert all(is_flat({name: DEFAULTS[name]}) for name in ("data", "problem", "strategy", "inner"))
    assert not is_flat(Config().plain())
    assert settings_of_run(Config().plain()) == Config().plain()


INNER = InnerSteps(3, Momentum(0.2))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Unroll(INNER)),
        ({"truncate": 2}, Unroll(INNER, truncate=2)),
        ({"truncate": 0}, Unroll(INNER, truncate=0)),
        ({"first_order": True}, Unroll(INNER, first_order=True)),
        ({"first_order_steps": 7, "multi_step": 5},
         Unroll(INNER, first_order_steps=7, multi_step=5)),
        ({"recompute": True}, Unroll(INNER, recompute=True)),
        ({"recompute": False}, Unroll(INNER, recompute=False)),
        ({"name": "implicit"}, Implicit(INNER, ConjugateGradient(5, 0.0))),
        ({"name": "implicit", "solver": "neumann", "solver_steps": 7, "damping": 0.1},
         Implicit(INNER, Neumann(7, 0.2, 0.1))),
        ({"name": "implicit", "solver": "neumann", "solver_step_size": 0.4},
         Implicit(INNER, Neumann(5, 0.4, 0.0))),
        ({"name": "implicit", "solver": "one_step"}, Implicit(INNER, OneStep(0.2))),
        ({"name": "penalty"}, Penalty(INNER)),
        ({"name": "penalty", "rho": 2.0, "lam": 3.0, "epsilon": 4.0, "multiplier": 5.0,
          "rho_growth": 6.0, "lam_decay": 0.7, "epsilon_decay": 0.8},
         Penalty(INNER, 2.0, 3.0, 4.0, 5.0, 6.0, 0.7, 0.8)),
        ({"name": "value_function"}, ValueFunction(INNER, 20)),
        ({"name": "value_function", "lam": 2.0, "lam_growth": 0.5, "lam_max": 9.0,
          "continued": True}, ValueFunction(INNER, 20, 2.0, 0.5, 9.0, continued=True)),
        ({"name": "bome", "value_steps": 4, "eta": 0.25}, BOME(INNER, 4, 0.25)),
        ({"name": "reptile", "query_weight": 0.75}, Reptile(INNER, 0.75)),
    ],
)  # fmt: skip
def test_strategies(changes: dict[str, Any], expected: Strategy) -> None:
    inner = {"inner__steps": 3, "inner__rule": "momentum", "inner__step_size": 0.2}
    settings = {f"strategy__{name}": value for name, value in changes.items()}
    assert today(**inner, **settings).strategy == expected.for_training()
    few = {"strategy": changes, "inner": {"steps": 3, "rule": "momentum", "step_size": 0.2}}
    assert config_from(few).strategy == expected.for_training()


def test_adaptation() -> None:
    adam = {"adaptation__steps": 4, "adaptation__rule": "adam", "adaptation__step_size": 0.1}
    assert today(**adam).adaptation == InnerSteps(4, Adam(0.1))
    learned = today(adaptation__steps=4, adaptation__rule="learned")
    assert learned.adaptation == InnerSteps(4, LearnedSGD())
    stepwise = today(adaptation__rule="learned", problem__step_sizes="step")
    assert stepwise.adaptation == InnerSteps(10, LearnedSGD(per_step=True))
    few = config_from({"inner": {}, "adaptation": {"step_size": 0.1}})
    assert few.adaptation == InnerSteps(10, SGD(0.1))


def test_data() -> None:
    assert today().data == Glyphs()
    assert today(data__size=20).data == Glyphs(20)
    omniglot = {"root": "a", "split": "background", "rotations": False, "mirrors": True,
                "size": 20, "download": True}  # fmt: skip
    settings = {f"data__{name}": value for name, value in omniglot.items()}
    assert today(data__name="omniglot", **settings).data == Omniglot(**omniglot)  # type: ignore[arg-type]
    assert today(data__name="cifarfs", data__root="a").data == CIFARFS("a")
    assert today(data__name="fc100", data__download=True).data == FC100(download=True)
    folder = {"root": "a", "csv": "b", "seed": 3, "color": False, "size": 20}
    settings = {f"data__{name}": value for name, value in folder.items()}
    assert today(data__name="folder", **settings).data == Folder(**folder)  # type: ignore[arg-type]
    assert today(data__name="folder").data == Folder()


def encoder(**changes: Any) -> tuple[Any, dict[str, Any]]:
    """Its kind, and the settings that are not its defaults."""
    found = today(**{f"problem__{n}": value for n, value in changes.items()}).encoder
    usual = config_from({"encoder": found.kind.__name__}).encoder.settings
    return found.kind, {n: v for n, v in found.settings.items() if usual[n] != v}


def test_encoders() -> None:
    conv4 = {"hidden": 8, "pools": 2, "norm": "layer"}
    assert encoder(**conv4) == (Conv4, conv4)
    stepwise = today(problem__norm="stepwise", inner__steps=3).encoder
    assert (stepwise.settings["norm"], stepwise.settings["steps"]) == ("stepwise", 3)
    assert encoder(network="resnet12") == (ResNet12, {})
    dropping = {"drop_block": 5, "drop_rate": 0.3}
    assert encoder(network="resnet12", **dropping) == (ResNet12, dropping)
    assert encoder(network="resnet12_narrow") == (ResNet12, {"widths": NARROW})
    assert encoder(network="wrn_28_10") == (WideResNet, {"drop_rate": 0.1})
    few = config_from({"problem": {"network": "wrn_28_10"}}).encoder
    assert few.settings["drop_rate"] == 0.1
    library = today(problem__network="timm:resnet18", problem__weights="w.pt",
                    problem__input_size=64, problem__sharpen=0.5).encoder  # fmt: skip
    assert library.settings == {
        "network": "timm:resnet18", "weights": "w.pt", "size": 64, "sharpen": 0.5,
    }  # fmt: skip
    own = today(problem__network="my_module:make", problem__input_size=64).encoder
    assert own.settings == {"function": "my_module:make", "size": 64, "sharpen": 0.0}


def problem(**changes: Any) -> Problem:
    return today(**{f"problem__{n}": value for n, value in changes.items()}).problem


@pytest.mark.parametrize(
    ("changes", "head"),
    [
        ({"head": "linear"}, {"name": "Linear"}),
        ({"head": "cosine", "scale": 5.0}, {"name": "Cosine", "scale": 5.0}),
        ({"head": "ridge", "scale": 5.0, "lam": 0.3}, {"name": "Ridge", "scale": 5.0, "lam": 0.3}),
        ({"head": "max_margin", "scale": 5.0, "margin_weight": 0.2},
         {"name": "MaxMargin", "scale": 5.0, "c": 0.2}),
        ({"head": "matching", "scale": 5.0}, {"name": "Matching", "scale": 5.0}),
        ({"head": "full_context", "scale": 5.0}, {"name": "FullContext", "scale": 5.0}),
        ({"head": "relation", "hidden": 8}, {"name": "Relation", "channels": 8}),
        ({"head": "relation", "network": "resnet12"}, {"name": "Relation"}),
        ({"head": "propagation"}, {"name": "LabelPropagation"}),
    ],
)  # fmt: skip
def test_heads(changes: dict[str, Any], head: dict[str, Any]) -> None:
    expected = config_from({"problem": {"name": "SharedEncoder", "head": head}}).problem
    assert problem(**changes) == expected


def test_problems() -> None:
    of_encoder = {"prox": 0.2, "start": "learned", "unit": True, "centre": True, "slices": 4,
                  "backend": "loop", "prove": False, "precision": "tf32"}  # fmt: skip
    shared = problem(**of_encoder, learn_prox=True)
    assert shared.kind.__name__ == "SharedEncoder"
    assert {n: shared.settings[n] for n in of_encoder} == of_encoder
    assert shared.settings["learn_prox"] is True
    pretraining = problem(**of_encoder, name="pretraining", classes=9)
    assert pretraining.kind.__name__ == "Pretraining"
    assert {n: pretraining.settings[n] for n in of_encoder} == of_encoder
    assert pretraining.settings["classes"] == 9
    maml = problem(name="initialization", prox=0.2, start="prototypes", backend="loop", prove=False)
    assert maml.kind.__name__ == "Initialization"
    wanted = {"prox": 0.2, "start": "prototypes", "backend": "loop", "prove": False}
    assert {n: maml.settings[n] for n in wanted} == wanted
    assert maml.settings["step_size"] is None
    plain = problem(name="initialization")
    assert (plain.settings["prox"], plain.settings["start"]) == (0.0, "learned")
    for adapt in ("all", "head", "body", "no_norms"):
        assert problem(name="initialization", adapt=adapt).settings["adapted"] == adapt
    assert today(problem__start_from="first.yaml").start_from == "first.yaml"


@pytest.mark.parametrize(
    ("sizes", "entries", "own_steps"),
    [("tensor", False, 0), ("entry", True, 0), ("step", False, 3)],
)
def test_learned_step_sizes(sizes: str, entries: bool, own_steps: int) -> None:
    config = today(
        problem__name="initialization", problem__step_sizes=sizes,
        inner__rule="learned", inner__step_size=0.125, inner__steps=3,
    )  # fmt: skip
    settings = config.problem.settings
    assert (settings["entry_steps"], settings["own_steps"]) == (entries, own_steps)
    assert settings["step_size"] == 0.125
    assert config.strategy == Unroll(InnerSteps(3, LearnedSGD(per_step=sizes == "step")))


def test_what_is_as_it_was_is_kept() -> None:
    same = {"episodes": {"way": 3}, "augment": {"flip": 0.5}, "train": {"steps": 9},
            "device": "cpu", "dtype": "float64", "seed": 3}  # fmt: skip
    config = config_from({**flat(), **same})
    assert (config.episodes.way, config.augment.flip, config.train.steps) == (3, 0.5, 9)
    assert (config.device, config.dtype, config.seed) == ("cpu", "float64", 3)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"problem": {"network": "conv4", "hiden": 3}}, r"no setting 'problem\.hiden' in the form"),
        ({"inner": {"stepz": 3}}, r"no setting 'inner\.stepz'"),
        ({"inner": 3}, "inner is 3: it must be a mapping"),
        ({"inner": {}, "strategy": "Penalty"}, "strategy is Penalty: it must be a mapping"),
        ({"inner": {}, "strategy": {"name": "magic"}}, r"strategy\.name is 'magic': use one of U"),
        ({"inner": {"rule": []}}, r"inner\.rule is '\[\]': use one of SGD"),
        ({"inner": {}, "colour": "red"}, "no setting 'colour'"),
        (flat(problem__weights="w.pt"), r"no setting 'encoder\.weights' of Conv4"),
        (flat(problem__network="resnet12", problem__input_size=9), r"'encoder\.size' of ResNet12"),
    ],
)  # fmt: skip
def test_what_the_earlier_form_had_not_is_refused(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        config_from(settings)


RECIPES = {
    "omniglot-5w1s/maml++": """
data: {name: omniglot}
episodes: {way: 5, shot: 1, query: 5, tasks: 4}
problem: {name: initialization, norm: stepwise, adapt: no_norms, step_sizes: step}
strategy: {name: unroll, first_order_steps: 300, multi_step: 1000}
inner: {steps: 5, rule: learned, step_size: 0.1}
adaptation: {steps: 5, rule: learned}
train: {steps: 6000, validate_every: 500, validation_tasks: 400}
""",
    "omniglot-5w1s/penalty": """
data: {name: omniglot}
episodes: {way: 20, shot: 1, query: 5, tasks: 3, validation_way: 5}
problem: {name: shared_encoder, head: linear, start: prototypes, prox: 0.5}
strategy: {name: penalty, rho: 30}
inner: {steps: 20, step_size: 0.05}
adaptation: {steps: 10, step_size: 0.5}
train: {steps: 6000, validate_every: 500, validation_tasks: 400}
""",
    "cifarfs-pretrained/ridge": """
data: {name: cifarfs}
episodes: {way: 20, shot: 1, query: 5, tasks: 1, validation_way: 5}
problem:
  {name: shared_encoder, network: "torchvision:mobilenet_v3_small", input_size: 128, head: ridge,
   unit: true, lam: 0.3, slices: 30}
strategy: {name: unroll}
inner: {steps: 0}
adaptation: {steps: 0}
train: {steps: 1000, learning_rate: 0.0003, ema: 0.99, validate_every: 200, validation_tasks: 400}
augment: {flip: 0.5, crop: 4, brightness: 0.4, contrast: 0.4, saturation: 0.4}
""",
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_of_an_earlier_version_are_todays(name: str) -> None:
    assert config_from(yaml.safe_load(RECIPES[name])) == read_recipe(
        ROOT / "recipes" / f"{name}.yaml"
    )


def older_state(strategy: Strategy, state: dict[str, Any]) -> dict[str, Any]:
    """A strategy's state as earlier versions kept it."""
    schedules = strategy.init().schedules
    return {
        "scalars": {name: state[name] for name in schedules},
        "inner": state["inner"],
        "multipliers": state.get("multipliers", {}),
    }


@pytest.mark.parametrize(
    "strategy",
    [
        Unroll(),
        Penalty().for_training(),
        ValueFunction(lam=2.0, lam_growth=1.0),
        BOME(),
        Implicit(),
    ],
)
def test_states_of_strategies(strategy: Strategy) -> None:
    state = strategy.init()
    tensors = {"head.weight": torch.randn(2, 3)}
    state = replace(state, inner=tensors)
    only_penalty_had = set() if isinstance(strategy, Penalty) else {"multipliers"}
    if not only_penalty_had:
        state = replace(state, multipliers=tensors)
    older = state_of_strategy(older_state(strategy, state.plain()))
    assert older == {n: x for n, x in state.plain().items() if n not in only_penalty_had}
    assert strategy.init().restored(older).plain().keys() == state.plain().keys()
    assert state_of_strategy(state.plain()) == state.plain()


def run_of(folder: Path, strategy: Strategy, steps: int) -> Config:
    episodes = {"way": 3, "query": 2, "validation_query": 3, "tasks": 3}
    train = {"steps": steps, "validate_every": 2, "validation_tasks": 4, "schedule": "constant",
             "start": "cold", "chunk": 3, "log_every": 1}  # fmt: skip
    config = config_from({"episodes": episodes, "train": train, "device": "cpu"})
    return replace(
        config,
        data=Folder(str(folder), color=False, size=16),
        encoder=Encoder(Conv4, {"hidden": 8}),
        problem=config.problem.changed(backend="loop"),
        strategy=strategy,
        adaptation=InnerSteps(2, SGD(0.1)),
    )


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data"))


def as_older(path: Path, images: Path, strategy: Strategy) -> None:
    """Writes a checkpoint as the version before wrote that of the same run."""
    data = torch.load(path, weights_only=True)
    inner = strategy.inner
    assert isinstance(inner.rule, SGD)
    names = {"Penalty": "penalty", "Unroll": "unroll"}
    settings = flat(
        data__name="folder", data__root=str(images), data__color=False, data__size=16,
        problem__hidden=8, problem__backend="loop", inner__steps=inner.steps,
        inner__step_size=inner.rule.step_size, adaptation__steps=2, adaptation__step_size=0.1,
        strategy__name=names[type(strategy).__name__],
    )  # fmt: skip
    same = {
        n: data["config"][n] for n in ("episodes", "augment", "train", "device", "dtype", "seed")
    }
    data["config"] = {**settings, **same}
    data["strategy"] = older_state(strategy, data["strategy"])
    torch.save(data, path)


STRATEGIES: list[Strategy] = [
    Penalty(InnerSteps(2, SGD(0.1))).for_training(),
    Unroll(InnerSteps(2, SGD(0.1))),
]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: type(strategy).__name__)
def test_a_run_of_an_earlier_version_goes_on(
    strategy: Strategy, images: Path, tmp_path: Path
) -> None:
    """To the same variables, bit for bit, as a run that was not stopped."""
    long, short = (run_of(images, strategy, steps) for steps in (4, 2))
    splits = long.data.load()
    train_from_config(long, splits, tmp_path / "whole", resume=False, tested=False)
    train_from_config(short, splits, tmp_path / "parts", resume=False, tested=False)
    as_older(tmp_path / "parts" / LAST, images, strategy)
    train_from_config(long, splits, tmp_path / "parts", resume=True, tested=False)
    whole, parts = (load(tmp_path / name / LAST) for name in ("whole", "parts"))
    assert parts.step == 4
    assert all(torch.equal(p, parts.outer[name]) for name, p in whole.outer.items())
    assert config_from(parts.config) == config_from(long.plain())


def test_a_run_of_an_earlier_version_with_other_settings_is_refused(
    images: Path, tmp_path: Path
) -> None:
    config = run_of(images, STRATEGIES[0], 2)
    splits = config.data.load()
    train_from_config(config, splits, tmp_path, resume=False, tested=False)
    as_older(tmp_path / LAST, images, STRATEGIES[0])
    other = replace(config, strategy=Penalty(InnerSteps(3, SGD(0.1))).for_training())
    with pytest.raises(CheckpointError, match=r"strategy\.inner\.steps was 2 and is 3; ") as error:
        train_from_config(other, splits, tmp_path, resume=True, tested=False)
    assert "\n" not in str(error.value)
    # Of a form that no version had.
    data = torch.load(tmp_path / LAST, weights_only=True)
    data["config"]["problem"]["colour"] = "red"
    torch.save(data, tmp_path / LAST)
    with pytest.raises(
        CheckpointError, match=r"unknown to this version \(.*problem\.colour"
    ) as error:
        train_from_config(config, splits, tmp_path, resume=True, tested=False)
    assert "\n" not in str(error.value)


RELEASED = sorted((ROOT / "checkpoints" / "released").glob("*/best.pt"))


@pytest.mark.parametrize("path", RELEASED, ids=lambda path: path.parent.name)
def test_released_models_are_built_and_restored(path: Path) -> None:
    loaded = load(path)
    config = replace(config_from(loaded.config), device="cpu")
    written = yaml.safe_load((path.parent / "config.yaml").read_text(encoding="utf-8"))
    assert config_from(written) == config_from(loaded.config)
    assert isinstance(config.data, ImageDataSet)
    image = torch.Size(config.data.image_shape)
    problem = build_problem(config, image, trained=False)
    loaded.restore(problem)
    for name, p in problem.outer.items():
        assert torch.equal(p, loaded.outer[name])
    state = config.strategy.init().restored(loaded.strategy)
    assert state.schedules.keys() == config.strategy.init().schedules.keys()


def test_every_released_folder_holds_a_model() -> None:
    folders = {card.parent for card in (ROOT / "checkpoints" / "released").glob("*/card.md")}
    assert folders
    assert {path.parent for path in RELEASED} == folders
