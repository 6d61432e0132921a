from __future__ import annotations

import importlib
import inspect
import sys
import types
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fewshot_blo.experiments.strategy import build_adaptation, build_strategy
from small_runs import make_dataset, make_folder
from torch import nn

from fewshot_blo.backbones import Backbone, Preprocessing, load_backbone
from fewshot_blo.backbones.layers import FrozenBatchNorm
from fewshot_blo.errors import CheckpointError, ConfigurationError
from fewshot_blo.experiments.data import build_device, build_sampler, build_splits, image_shape
from fewshot_blo.experiments.problem import NETWORKS, build_problem
from fewshot_blo.experiments.settings import (
    Config,
    DataSettings,
    EpisodeSettings,
    ProblemSettings,
    RuleSettings,
    StrategySettings,
)
from fewshot_blo.experiments.training import build_start
from fewshot_blo.heads import CosineHead
from fewshot_blo.hypergrad import (
    BOME,
    Implicit,
    Penalty,
    Reptile,
    Unroll,
    ValueFunction,
)
from fewshot_blo.hypergrad.linear_solve import ConjugateGradient, Neumann, OneStep
from fewshot_blo.kernel import SGD, Adam, InnerSteps, LearnedSGD, Momentum
from fewshot_blo.networks.resnet12 import DropBlock
from fewshot_blo.problems import FewShotProblem, Initialization, SharedEncoder
from fewshot_blo.tasks import Augmentation
from fewshot_blo.training.checkpoint import Checkpoint, random_state, save

IMAGE = torch.Size([1, 16, 16])
NETWORK = """
import torch
from torch import nn

def features():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten()
    )

def maps():
    return nn.Conv2d(1, 4, 3)

def colour():
    return nn.Conv2d(3, 4, 3)

def wants(argument):
    return nn.Identity()

def nothing():
    return 3
"""


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module of a user's own."""
    (tmp_path / "own_network.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_network", raising=False)
    return "own_network"


def problem_config(**settings: Any) -> Config:
    return Config(problem=ProblemSettings(**{"hidden": 8, **settings}), device="cpu")


def test_strategies() -> None:
    config = Config(inner=RuleSettings(3, "momentum", 0.2))
    rule = Momentum(0.2)

    def built(**settings: Any) -> Any:
        return build_strategy(replace(config, strategy=StrategySettings(**settings)))

    assert built() == Unroll(InnerSteps(3, rule))
    assert built(truncate=2) == Unroll(InnerSteps(3, rule), truncate=2)
    assert built(first_order=True) == Unroll(InnerSteps(3, rule), first_order=True)
    for recompute in (True, False, None):
        assert built(recompute=recompute) == Unroll(InnerSteps(3, rule), recompute=recompute)
    assert built(name="implicit") == Implicit(InnerSteps(3, rule), ConjugateGradient(5, 0.0))
    neumann = built(name="implicit", solver="neumann", solver_steps=7, damping=0.1)
    assert neumann == Implicit(InnerSteps(3, rule), Neumann(7, 0.2, 0.1))
    assert built(name="implicit", solver="one_step") == Implicit(InnerSteps(3, rule), OneStep(0.2))
    penalty = built(name="penalty", rho=2.0, lam=3.0, epsilon=4.0, multiplier=5.0)
    assert penalty == Penalty(InnerSteps(3, rule), rho=2.0, lam=3.0, epsilon=4.0, multiplier=5.0)
    assert built(name="penalty") == Penalty(InnerSteps(3, rule))
    assert built(name="value_function") == ValueFunction(InnerSteps(3, rule), 20)
    value = built(name="value_function", lam=2.0, lam_growth=0.5, lam_max=9.0, continued=True)
    assert value == ValueFunction(InnerSteps(3, rule), 20, 2.0, 0.5, 9.0, continued=True)
    assert built(name="bome", value_steps=4, eta=0.25) == BOME(InnerSteps(3, rule), 4, 0.25)
    assert built(name="reptile", query_weight=0.75) == Reptile(InnerSteps(3, rule), 0.75)


def test_adaptation() -> None:
    config = Config(adaptation=RuleSettings(4, "adam", 0.1))
    assert build_adaptation(config) == InnerSteps(4, Adam(0.1))
    learned = replace(config, adaptation=RuleSettings(4, "learned", 0.1))
    assert build_adaptation(learned) == InnerSteps(4, LearnedSGD())
    assert build_adaptation(Config()) == InnerSteps(10, SGD(0.5))


def test_pretrained_networks(tmp_path: Path) -> None:
    """A checkpoint brings its weights, so that the file is needed for training alone."""
    name = "torchvision:mobilenet_v3_small"
    body = load_backbone(name, pretrained=False).body
    torch.save(body.state_dict(), tmp_path / "w.pt")
    config = problem_config(network=name, weights=str(tmp_path / "w.pt"), input_size=32)
    problem = build_problem(config, torch.Size((3, 20, 20)))
    assert isinstance(problem, SharedEncoder)
    first = problem.outer["body.features.0.0.weight"]
    assert torch.equal(first, body.features[0][0].weight)  # type: ignore[index, union-attr]
    assert problem.network.preprocess.settings.size == 32  # type: ignore[union-attr]
    (tmp_path / "w.pt").unlink()
    again = build_problem(config, torch.Size((3, 20, 20)), pretrained=False)
    assert again.outer.keys() == problem.outer.keys()
    with pytest.raises(CheckpointError, match="no weight file"):
        build_problem(config, torch.Size((3, 20, 20)))


def test_own_backbones(monkeypatch: pytest.MonkeyPatch) -> None:
    """One's own function may return a backbone, which resizes images, or a plain network."""
    module: Any = types.ModuleType("own_encoders")
    body = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    module.backbone = lambda: Backbone(body, Preprocessing(8))
    module.plain = lambda: torch.nn.Sequential(body, torch.nn.Flatten())
    monkeypatch.setitem(sys.modules, "own_encoders", module)

    def built(**settings: Any) -> FewShotProblem:
        return build_problem(problem_config(**settings), torch.Size((3, 20, 20)))

    for size, found in ((0, 8), (12, 12)):
        problem = built(network="own_encoders:backbone", input_size=size, sharpen=0.5)
        assert isinstance(problem, SharedEncoder)
        assert isinstance(problem.network, Backbone)
        assert problem.network.preprocess.settings == Preprocessing(found, sharpen=0.5)
        assert isinstance(problem.network.body[1], FrozenBatchNorm)  # type: ignore[index]
    for name in ("own_encoders:plain", "conv4", "resnet12"):
        with pytest.raises(ConfigurationError, match=f"input_size is 12, and network '{name}'"):
            built(network=name, input_size=12)
        with pytest.raises(ConfigurationError, match=r"sharpen is 0\.5, and network .* is a "):
            built(network=name, sharpen=0.5)
    for name in ("own_encoders:backbone", "conv4"):
        with pytest.raises(ConfigurationError, match=r"weights is w\.pt, which network"):
            built(network=name, weights="w.pt")


def test_problems() -> None:
    shared = build_problem(problem_config(head="cosine", start="learned", prox=0.2), IMAGE)
    assert isinstance(shared, SharedEncoder)
    assert isinstance(shared.head, CosineHead)
    assert shared.prox == 0.2
    assert shared.outer["start/head.weight"].shape == (5, 8)
    anil = build_problem(problem_config(name="initialization", adapt="head"), IMAGE)
    assert isinstance(anil, Initialization)
    assert anil.adapted == ["head.weight", "head.bias"]
    assert anil.prox == 0
    boil = build_problem(problem_config(name="initialization", adapt="body"), IMAGE)
    assert isinstance(boil, Initialization)
    assert all(name.startswith("encoder.") for name in boil.adapted)
    prototypes = build_problem(problem_config(name="initialization", start="prototypes"), IMAGE)
    assert not any(name.startswith("head.") for name in prototypes.outer)
    learned = replace(
        problem_config(name="initialization"), inner=RuleSettings(3, "learned", 0.125)
    )
    sizes = build_problem(learned, IMAGE).outer
    assert sizes["step_size/head.bias"].item() == 0.125


def test_the_parts_of_maml_plus_plus() -> None:
    settings = problem_config(
        name="initialization", norm="stepwise", adapt="no_norms", step_sizes="step"
    )
    config = replace(
        settings,
        inner=RuleSettings(3, "learned", 0.125),
        adaptation=RuleSettings(3, "learned"),
    )
    problem = build_problem(config, IMAGE)
    assert isinstance(problem, Initialization)
    assert problem.outer["encoder.blocks.block1.norm.weight"].shape == (3, 8)
    assert not any(".norm." in name for name in problem.adapted)
    assert sum(".convolution." in name for name in problem.adapted) == 8
    assert problem.outer["step_size/head.bias"].tolist() == [0.125] * 3
    assert build_adaptation(config).rule == LearnedSGD(per_step=True)
    assert build_strategy(config) == Unroll(InnerSteps(3, LearnedSGD(per_step=True)))


def test_step_sizes_of_entries() -> None:
    settings = problem_config(name="initialization", step_sizes="entry")
    problem = build_problem(replace(settings, inner=RuleSettings(3, "learned", 0.1)), IMAGE)
    for name in ("head.weight", "encoder.blocks.block2.convolution.weight"):
        assert problem.outer["step_size/" + name].shape == problem.outer[name].shape


@pytest.mark.parametrize(
    ("name", "features"), [("conv4", 8), ("resnet12", 640), ("resnet12_narrow", 512)]
)
def test_networks_by_name(name: str, features: int) -> None:
    assert name in NETWORKS
    config = problem_config(network=name, start="learned", drop_block=2, drop_rate=0.2)
    problem = build_problem(config, IMAGE)
    assert problem.outer["start/head.weight"].shape == (5, features)
    rates = [m.rate for m in problem.network.modules() if isinstance(m, DropBlock)]
    assert rates == ([] if name == "conv4" else [0.2, 0.2])


def test_weights_follow_the_seed_and_nothing_else() -> None:
    first = build_problem(problem_config(), IMAGE).outer
    state = torch.get_rng_state()
    torch.rand(5)
    again = build_problem(problem_config(), IMAGE).outer
    assert all(torch.equal(p, again[name]) for name, p in first.items())
    other = build_problem(replace(problem_config(), seed=1), IMAGE).outer
    assert not torch.equal(
        other["blocks.block1.convolution.weight"], first["blocks.block1.convolution.weight"]
    )
    torch.set_rng_state(state)


def test_the_widest_task_decides_the_head() -> None:
    config = replace(problem_config(name="initialization"), episodes=EpisodeSettings(way=(2, 7)))
    assert build_problem(config, IMAGE).outer["head.bias"].shape == (7,)


def test_dtype() -> None:
    config = replace(problem_config(), dtype="float64")
    assert {p.dtype for p in build_problem(config, IMAGE).outer.values()} == {torch.float64}
    sampler = build_sampler(
        replace(config, episodes=EpisodeSettings(way=3, query=2)), make_dataset(), training=True
    )
    assert sampler.batch(0).support_x.dtype == torch.float64


def test_training_and_validation_tasks() -> None:
    episodes = EpisodeSettings(way=(2, 3), shot=1, query=2, validation_query=4, tasks=2, seed=6)
    config = Config(episodes=episodes, device="cpu")
    training = build_sampler(config, make_dataset(), training=True)
    validation = build_sampler(config, make_dataset(), training=False)
    assert (training.query, validation.query) == ((2, 2), (4, 4))
    assert (training.seed, validation.seed) == (6, 7)
    assert training.way == (2, 3)


def test_training_images_alone_are_augmented() -> None:
    episodes = EpisodeSettings(way=2, query=2, validation_query=2)
    config = Config(augment=Augmentation(flip=0.5), episodes=episodes, device="cpu")
    assert build_sampler(config, make_dataset(), training=True).augment == config.augment
    assert build_sampler(config, make_dataset(), training=False).augment is None
    plain = replace(config, augment=Augmentation())
    assert build_sampler(plain, make_dataset(), training=True).augment is None


def test_a_network_of_a_users_own(network: str) -> None:
    problem = build_problem(problem_config(network=f"{network}:features", start="learned"), IMAGE)
    assert [type(m) for m in problem.network.modules()][2:5] == [
        nn.BatchNorm2d,
        nn.ReLU,
        nn.Dropout,
    ]
    assert problem.outer["start/head.weight"].shape == (5, 4 * 14 * 14)
    # Counting its features must leave a pretrained network's statistics alone.
    assert not problem.network[1].running_mean.any()  # type: ignore[index]
    assert problem.network.training


@pytest.mark.parametrize(
    ("function", "match"),
    [
        ("own_network:absent", "has no attribute 'absent'.*module:function"),
        ("own_network", "cannot be made"),
        ("absent_module:features", "No module named 'absent_module'.*PYTHONPATH"),
        (":features", "cannot be made"),
        ("own_network:wants", "missing 1 required positional argument"),
        ("own_network:nothing", "returned int, not a torch module"),
        ("own_network:maps", r"returns shape \[2, 4, 14, 14\].*flatten or pool"),
        ("own_network:colour", r"fails on images of shape \[1, 16, 16\]"),
    ],
)
def test_networks_that_do_not_fit(network: str, function: str, match: str) -> None:
    assert network
    with pytest.raises(ConfigurationError, match=match):
        build_problem(problem_config(network=function), IMAGE)


def test_images_too_small_for_conv4() -> None:
    with pytest.raises(ConfigurationError, match="use images of at least 16x16"):
        build_problem(problem_config(), torch.Size([1, 12, 12]))


def test_devices() -> None:
    assert build_device(Config(device="cpu")) == torch.device("cpu")
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert build_device(Config()).type == expected
    with pytest.raises(ConfigurationError, match=r"device 'cuda:99' .*use cpu or auto"):
        build_device(Config(device="cuda:99"))
    with pytest.raises(ConfigurationError, match=r"device 'gpu' .*use cpu or auto"):
        build_device(Config(device="gpu"))


def test_data_sets_that_need_more() -> None:
    with pytest.raises(ConfigurationError, match=r"'omniglot' needs the folder.*--data\.root"):
        build_splits(DataSettings("omniglot"))
    with pytest.raises(ConfigurationError, match="glyphs: mirrored classes are for omniglot"):
        build_splits(DataSettings("glyphs", mirrors=True))


@pytest.mark.parametrize("name", ["glyphs", "omniglot", "miniimagenet", "tieredimagenet", "fc100"])
def test_usual_sizes_are_those_of_the_data_sets(name: Any) -> None:
    module = importlib.import_module(f"tasks.{'cifarfs' if name == 'fc100' else name}")
    usual = inspect.signature(module.load).parameters["size"].default
    assert image_shape(DataSettings(name))[1:] == (usual, usual)
    assert image_shape(DataSettings(name, size=50))[1:] == (50, 50)


@pytest.mark.parametrize(
    "data",
    [
        DataSettings("glyphs"),
        DataSettings("folder"),
        DataSettings("folder", color=False, size=20),
        DataSettings("omniglot", size=12),
        DataSettings("cifarfs"),
    ],
    ids=lambda data: f"{data.name}-{data.size}",
)
def test_shapes_of_images(data: DataSettings, tmp_path: Path, request: Any) -> None:
    if data.name in ("omniglot", "cifarfs"):
        data = replace(data, root=str(request.getfixturevalue("data_root")))
    elif data.name == "folder":
        data = replace(data, root=str(make_folder(tmp_path, classes=3, images=1)))
    assert image_shape(data) == tuple(build_splits(data).train.images.shape[1:])


def saved_start(folder: Path, config: dict[str, Any]) -> tuple[Path, FewShotProblem]:
    """A checkpoint with these settings, and the problem whose weights it holds."""
    problem = build_problem(problem_config(), IMAGE)
    nothing: dict[str, Any] = {"optimizer": {}, "best": {}}
    checkpoint = Checkpoint(
        step=1,
        config=config,
        outer=problem.outer,
        buffers=dict(problem.network.named_buffers()),
        strategy={},
        settled={"backend": "loop", "chunk": 1},
        random_state=random_state(),
        **nothing,
    )
    save(checkpoint, folder / "best.pt")
    return folder / "best.pt", problem


@pytest.mark.parametrize(
    ("before", "now", "seen"),
    [
        (DataSettings("cifarfs"), DataSettings("cifarfs", size=28), False),
        (DataSettings("cifarfs"), DataSettings("fc100"), True),
        (DataSettings("fc100"), DataSettings("cifarfs"), True),
        (DataSettings("tieredimagenet"), DataSettings("miniimagenet"), True),
        (DataSettings("cifarfs"), DataSettings("miniimagenet"), False),
        (DataSettings("omniglot", mirrors=True), DataSettings("omniglot"), False),
        (DataSettings("omniglot", split="background"), DataSettings("omniglot"), True),
        (DataSettings("glyphs"), DataSettings("omniglot"), False),
        (DataSettings("folder", "a"), DataSettings("folder", "a", size=20), False),
        (DataSettings("folder", "a"), DataSettings("folder", "a", seed=1), True),
        (DataSettings("folder", "a"), DataSettings("folder", "b", seed=1), False),
    ],
)
def test_a_start_has_not_seen_what_is_held_out(
    before: DataSettings, now: DataSettings, seen: bool, tmp_path: Path
) -> None:
    start, problem = saved_start(tmp_path, asdict(replace(problem_config(), data=before)))
    config = replace(problem_config(start_from=str(start)), data=now, seed=1)
    if seen:
        with pytest.raises(ConfigurationError, match="trained on classes that are validation or"):
            build_start(config, IMAGE)
    else:
        found = build_start(config, IMAGE).outer
        assert all(torch.equal(p, problem.outer[name]) for name, p in found.items())


@pytest.mark.parametrize(
    "saved", [{}, {"data": "flowers"}, {"data": {"name": "flowers"}}, {"data": {"name": "../.."}}]
)
def test_a_start_of_a_program_of_ones_own(saved: dict[str, Any], tmp_path: Path) -> None:
    """It may have saved any settings, of which nothing is known, and no file is read for them."""
    start, problem = saved_start(tmp_path, saved)
    config = replace(problem_config(start_from=str(start)), data=DataSettings("fc100"), seed=1)
    found = build_start(config, IMAGE).outer
    assert all(torch.equal(p, problem.outer[name]) for name, p in found.items())
