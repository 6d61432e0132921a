"""From settings to tasks, problems and devices."""

from __future__ import annotations

import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import make_dataset
from torch import nn

from fewshot_blo.backbones import Backbone, Preprocessing, load_backbone
from fewshot_blo.backbones.layers import FrozenBatchNorm
from fewshot_blo.errors import CheckpointError, ConfigurationError
from fewshot_blo.experiments.data import build_device, build_sampler
from fewshot_blo.experiments.problem import build_problem
from fewshot_blo.experiments.settings import Config, EpisodeSettings, config_from
from fewshot_blo.experiments.training import build_start
from fewshot_blo.heads import CosineHead
from fewshot_blo.hypergrad import Unroll
from fewshot_blo.kernel import InnerSteps, LearnedSGD
from fewshot_blo.networks.resnet12 import DropBlock
from fewshot_blo.problems import FewShotProblem, Initialization, SharedEncoder
from fewshot_blo.tasks import Augmentation
from fewshot_blo.tasks.catalogue import (
    CIFARFS,
    FC100,
    DataSet,
    Folder,
    Glyphs,
    MiniImageNet,
    Omniglot,
    TieredImageNet,
)
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


def config_of(encoder: Any = None, **problem: Any) -> Config:
    """Settings with an encoder, by default a small one, and a problem by its name and settings."""
    small = {"name": "Conv4", "hidden": 8}
    named = {"name": "SharedEncoder", **problem}
    return config_from({"encoder": encoder or small, "problem": named, "device": "cpu"})


def test_pretrained_networks(tmp_path: Path) -> None:
    """A checkpoint brings its weights, so that the file is needed for training alone."""
    name = "torchvision:mobilenet_v3_small"
    body = load_backbone(name, pretrained=False).body
    torch.save(body.state_dict(), tmp_path / "w.pt")
    config = config_of({"name": name, "weights": str(tmp_path / "w.pt"), "size": 32})
    problem = build_problem(config, torch.Size((3, 20, 20)))
    assert isinstance(problem, SharedEncoder)
    first = problem.outer["body.features.0.0.weight"]
    assert torch.equal(first, body.features[0][0].weight)  # type: ignore[index, union-attr]
    assert problem.network.preprocess.settings.size == 32  # type: ignore[union-attr]
    (tmp_path / "w.pt").unlink()
    again = build_problem(config, torch.Size((3, 20, 20)), trained=False)
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

    def built(**encoder: Any) -> FewShotProblem:
        return build_problem(config_of(encoder), torch.Size((3, 20, 20)))

    for size, found in ((0, 8), (12, 12)):
        problem = built(name="own_encoders:backbone", size=size, sharpen=0.5)
        assert isinstance(problem, SharedEncoder)
        assert isinstance(problem.network, Backbone)
        assert problem.network.preprocess.settings == Preprocessing(found, sharpen=0.5)
        assert isinstance(problem.network.body[1], FrozenBatchNorm)  # type: ignore[index]
    for setting, value in (("size", 12), ("sharpen", 0.5)):
        with pytest.raises(
            ConfigurationError, match=f"{setting} is {value}, and own_encoders:plain returns a Seq"
        ):
            built(name="own_encoders:plain", **{setting: value})
        for name in ("Conv4", "ResNet12"):
            with pytest.raises(ConfigurationError, match=f"'encoder.{setting}' of {name}"):
                built(name=name, **{setting: value})
    for name, kind in (("own_encoders:backbone", "own"), ("Conv4", "Conv4")):
        with pytest.raises(ConfigurationError, match=f"no setting 'encoder.weights' of {kind}"):
            built(name=name, weights="w.pt")


def test_problems() -> None:
    shared = build_problem(config_of(head="Cosine", start="learned", prox=0.2), IMAGE)
    assert isinstance(shared, SharedEncoder)
    assert isinstance(shared.head, CosineHead)
    assert shared.prox == 0.2
    assert shared.outer["start/head.weight"].shape == (5, 8)
    anil = build_problem(config_of(name="Initialization", adapted="head"), IMAGE)
    assert isinstance(anil, Initialization)
    assert anil.adapted == ["head.weight", "head.bias"]
    assert anil.prox == 0
    boil = build_problem(config_of(name="Initialization", adapted="body"), IMAGE)
    assert isinstance(boil, Initialization)
    assert all(name.startswith("encoder.") for name in boil.adapted)
    prototypes = build_problem(config_of(name="Initialization", start="prototypes"), IMAGE)
    assert not any(name.startswith("head.") for name in prototypes.outer)
    sizes = build_problem(config_of(name="Initialization", step_size=0.125), IMAGE).outer
    assert sizes["step_size/head.bias"].item() == 0.125


def test_the_parts_of_maml_plus_plus() -> None:
    """As the recipe of an earlier version says them."""
    config = config_from(
        {
            "problem": {
                "name": "initialization",
                "hidden": 8,
                "norm": "stepwise",
                "adapt": "no_norms",
                "step_sizes": "step",
            },
            "inner": {"steps": 3, "rule": "learned", "step_size": 0.125},
            "adaptation": {"steps": 3, "rule": "learned"},
            "device": "cpu",
        }
    )
    problem = build_problem(config, IMAGE)
    assert isinstance(problem, Initialization)
    assert problem.outer["encoder.blocks.block1.norm.weight"].shape == (3, 8)
    assert not any(".norm." in name for name in problem.adapted)
    assert sum(".convolution." in name for name in problem.adapted) == 8
    assert problem.outer["step_size/head.bias"].tolist() == [0.125] * 3
    assert config.adaptation.rule == LearnedSGD(per_step=True)
    assert config.strategy == Unroll(InnerSteps(3, LearnedSGD(per_step=True)))


def test_step_sizes_of_entries() -> None:
    config = config_of(name="Initialization", step_size=0.1, entry_steps=True)
    problem = build_problem(config, IMAGE)
    for name in ("head.weight", "encoder.blocks.block2.convolution.weight"):
        assert problem.outer["step_size/" + name].shape == problem.outer[name].shape


NARROW = [64, 128, 256, 512]


@pytest.mark.parametrize(
    ("encoder", "features"),
    [
        ({"name": "Conv4", "hidden": 8}, 8),
        ({"name": "MLP", "widths": [8, 6], "activation": "gelu"}, 6),
        ({"name": "SineNetwork", "widths": [7]}, 7),
        ({"name": "ResNet12", "drop_block": 2, "drop_rate": 0.2}, 640),
        ({"name": "ResNet12", "widths": NARROW, "drop_block": 2, "drop_rate": 0.2}, 512),
    ],
    ids=["Conv4", "MLP", "SineNetwork", "ResNet12", "ResNet12-narrow"],
)
def test_networks_by_name(encoder: dict[str, Any], features: int) -> None:
    problem = build_problem(config_of(encoder, start="learned"), IMAGE)
    assert problem.outer["start/head.weight"].shape == (5, features)
    rates = [m.rate for m in problem.network.modules() if isinstance(m, DropBlock)]
    assert rates == ([0.2, 0.2] if "drop_rate" in encoder else [])


@pytest.mark.parametrize("name", ["TransformerEncoder", "GRU"])
def test_networks_of_sequences_refuse_images(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"takes floating-point vectors of shape"):
        build_problem(config_of({"name": name}), IMAGE)


def test_weights_follow_the_seed_and_nothing_else() -> None:
    first = build_problem(config_of(), IMAGE).outer
    state = torch.get_rng_state()
    torch.rand(5)
    again = build_problem(config_of(), IMAGE).outer
    assert all(torch.equal(p, again[name]) for name, p in first.items())
    other = build_problem(replace(config_of(), seed=1), IMAGE).outer
    assert not torch.equal(
        other["blocks.block1.convolution.weight"], first["blocks.block1.convolution.weight"]
    )
    torch.set_rng_state(state)


def test_the_widest_task_decides_the_head() -> None:
    config = replace(config_of(name="Initialization"), episodes=EpisodeSettings(way=(2, 7)))
    assert build_problem(config, IMAGE).outer["head.bias"].shape == (7,)


def test_dtype() -> None:
    config = replace(config_of(), dtype="float64")
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
    assert validation.describe() == "2..3-way 1-shot 4 queries a class"
    assert (training.seed, validation.seed) == (6, 7)
    assert training.describe() == "2..3-way 1-shot 2 queries a class"


def test_training_images_alone_are_augmented() -> None:
    episodes = EpisodeSettings(way=2, query=2, validation_query=2)
    config = Config(augment=Augmentation(flip=0.5), episodes=episodes, device="cpu")
    assert vars(build_sampler(config, make_dataset(), training=True))["augment"] == config.augment
    assert vars(build_sampler(config, make_dataset(), training=False))["augment"] is None
    plain = replace(config, augment=Augmentation())
    assert vars(build_sampler(plain, make_dataset(), training=True))["augment"] is None


def test_a_network_of_a_users_own(network: str) -> None:
    problem = build_problem(config_of(f"{network}:features", start="learned"), IMAGE)
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
        ("own_network", "cannot be created"),
        ("absent_module:features", "No module named 'absent_module'.*PYTHONPATH"),
        (":features", "cannot be created"),
        ("own_network:wants", "missing 1 required positional argument"),
        ("own_network:nothing", "returned int: it must return a torch module"),
        ("own_network:maps", r"returns shape \[2, 4, 14, 14\].*flatten or pool"),
        ("own_network:colour", r"fails on inputs of shape \[1, 16, 16\]"),
    ],
)
def test_networks_that_do_not_fit(network: str, function: str, match: str) -> None:
    assert network
    with pytest.raises(ConfigurationError, match=match):
        build_problem(config_of({"name": "own", "function": function}), IMAGE)


def test_images_too_small_for_conv4() -> None:
    with pytest.raises(ConfigurationError, match="use images of at least 16x16"):
        build_problem(config_of(), torch.Size([1, 12, 12]))


def test_inputs_that_are_no_images_need_another_encoder() -> None:
    with pytest.raises(ConfigurationError, match=r"fails on inputs of shape \[1\].*as MLP for"):
        build_problem(config_of(), torch.Size([1]))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"episodes": {"protocol": "Dirichlet"}}, "protocol Dirichlet is for .*Functions has none"),
        ({"augment": {"flip": 0.5}}, "augment is for .*Functions has none: leave it out"),
    ],
)
def test_settings_that_need_classes_are_refused_without_them(
    settings: dict[str, Any], match: str
) -> None:
    config = config_from({"data": "Functions", **settings})
    with pytest.raises(ConfigurationError, match=match):
        build_sampler(config, config.data.load().train, training=True)


def test_devices() -> None:
    assert build_device(Config(device="cpu")) == torch.device("cpu")
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert build_device(Config()).type == expected
    with pytest.raises(ConfigurationError, match=r"device 'cuda:99' .*use cpu or auto"):
        build_device(Config(device="cuda:99"))
    with pytest.raises(ConfigurationError, match=r"device 'gpu' .*use cpu or auto"):
        build_device(Config(device="gpu"))


def saved_start(folder: Path, config: dict[str, Any]) -> tuple[Path, FewShotProblem]:
    """A checkpoint with these settings, and the problem whose weights it holds."""
    problem = build_problem(config_of(), IMAGE)
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
        (CIFARFS(), CIFARFS(size=28), False),
        (CIFARFS(), FC100(), True),
        (FC100(), CIFARFS(), True),
        (TieredImageNet(), MiniImageNet(), True),
        (CIFARFS(), MiniImageNet(), False),
        (Omniglot(mirrors=True), Omniglot(), False),
        (Omniglot(split="background"), Omniglot(), True),
        (Glyphs(), Omniglot(), False),
        (Folder("a"), Folder("a", size=20), False),
        (Folder("a"), Folder("a", seed=1), True),
        (Folder("a"), Folder("b", seed=1), False),
    ],
)
def test_a_start_has_not_seen_what_is_held_out(
    before: DataSet, now: DataSet, seen: bool, tmp_path: Path
) -> None:
    start, problem = saved_start(tmp_path, replace(config_of(), data=before).plain())
    config = replace(config_of(), start_from=str(start), data=now, seed=1)
    if seen:
        with pytest.raises(ConfigurationError, match="trained on classes that are validation or"):
            build_start(config, IMAGE)
    else:
        found = build_start(config, IMAGE).outer
        assert all(torch.equal(p, problem.outer[name]) for name, p in found.items())


@pytest.mark.parametrize(
    "saved",
    [
        {},
        {"data": "flowers"},
        {"data": {"name": "flowers"}},
        {"data": {"name": "../.."}},
        {"data": {}},
    ],
)
def test_a_start_of_a_program_of_ones_own(saved: dict[str, Any], tmp_path: Path) -> None:
    """It may have saved any settings, of which nothing is known, and no file is read for them."""
    start, problem = saved_start(tmp_path, saved)
    config = replace(config_of(), start_from=str(start), data=FC100(), seed=1)
    found = build_start(config, IMAGE).outer
    assert all(torch.equal(p, problem.outer[name]) for name, p in found.items())
