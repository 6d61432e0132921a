"""From the settings of a run to its data, problem and strategy."""

from __future__ import annotations

import importlib

import torch
from torch import nn

from fewshot_blo.config import (
    Config,
    DataSettings,
    ProblemSettings,
    RuleSettings,
    StrategySettings,
)
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.evaluate import Adaptation
from fewshot_blo.hypergrad import Implicit, Penalty, Strategy, Unroll
from fewshot_blo.kernel import SGD, Adam, LearnedSGD, Momentum, UpdateRule
from fewshot_blo.linear_solve import ConjugateGradient, LinearSolver, Neumann, OneStep
from fewshot_blo.networks import NARROW, WIDE, Conv4, CosineHead, LinearHead, ResNet12, classifier
from fewshot_blo.problems import FewShotProblem, Initialization, SharedEncoder
from tasks import ClassDataset, EpisodicSampler, Splits

NETWORKS = ("conv4", "resnet12", "resnet12_narrow")


def build_splits(data: DataSettings) -> Splits:
    """The splits of a data set by name.

    Raises:
        ConfigurationError: if the data set needs a folder and none is given, or its images have
            one size only and another is asked for.
        DataError: if its files are missing or bad.
    """
    if data.name != "glyphs" and not data.root:
        raise ConfigurationError(
            f"data set '{data.name}' needs the folder of its files: set --data.root"
        )
    if data.name in ("cifarfs", "fc100") and data.size not in (0, 32):
        raise ConfigurationError(
            f"data.size is {data.size}: the images of {data.name} are of 32 pixels; leave it at 0"
        )
    # Imported here, for each data set needs libraries of its own.
    module = importlib.import_module(f"tasks.{'cifarfs' if data.name == 'fc100' else data.name}")
    arguments: dict[str, object] = {"size": data.size} if data.size else {}
    if data.name == "omniglot":
        arguments.update(split=data.split, rotations=data.rotations, download=data.download)
    elif data.name in ("cifarfs", "fc100"):
        arguments = {"variant": data.name, "download": data.download}
    elif data.name == "folder":
        arguments = {"size": data.size or 84, "seed": data.seed, "color": data.color}
        if data.csv:
            arguments["csv"] = data.csv
    roots = () if data.name == "glyphs" else (data.root,)
    splits: Splits = module.load(*roots, **arguments)
    return splits


def build_device(config: Config) -> torch.device:
    """The device.

    Raises:
        ConfigurationError: if it is not there.
    """
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros((), device=config.device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigurationError(
            f"device '{config.device}' cannot be used ({reason}): use cpu or auto"
        ) from error
    return torch.device(config.device)


def build_sampler(config: Config, dataset: ClassDataset, *, training: bool) -> EpisodicSampler:
    """The training tasks, or the validation tasks, of a split."""
    episodes, device = config.episodes, build_device(config)
    return EpisodicSampler(
        dataset.to(device),
        way=episodes.way,
        shot=episodes.shot,
        query=episodes.query if training else episodes.validation_query,
        tasks=episodes.tasks,
        seed=episodes.seed if training else episodes.seed + 1,
        device=device,
        dtype=_dtype(config),
        augment=config.augment if training else None,
    )


def build_problem(config: Config, image: torch.Size) -> FewShotProblem:
    """The few-shot problem for images ``[C, H, W]``, with weights drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        encoder = _encoder(config.problem, image[0]).to(_dtype(config))
        features = _feature_count(encoder, image, _dtype(config))
        way = config.episodes.way
        way = way if isinstance(way, int) else way[1]
        if config.problem.name == "shared_encoder":
            return _shared_encoder(config, encoder, features, way)
        network = classifier(encoder, features, way)
        return _initialization(config, network.to(build_device(config), _dtype(config)))


def _shared_encoder(config: Config, encoder: nn.Module, features: int, way: int) -> SharedEncoder:
    settings = config.problem
    return SharedEncoder(
        encoder.to(build_device(config)),
        CosineHead() if settings.head == "cosine" else LinearHead(),
        start=settings.start,
        learn_prox=settings.learn_prox,
        way=way,
        features=features,
        backend=settings.backend,
        precision=settings.precision,
        **_prox(settings),
    )


def _initialization(config: Config, network: nn.Module) -> Initialization:
    prefixes = {"all": ("",), "head": ("head.",), "body": ("encoder.",)}
    return Initialization(
        network,
        adapted=prefixes[config.problem.adapt],
        step_size=config.inner.step_size if config.inner.rule == "learned" else None,
        backend=config.problem.backend,
        precision=config.problem.precision,
        **_prox(config.problem),
    )


def _prox(settings: ProblemSettings) -> dict[str, float]:
    """The proximal weight where it is set; each problem has its own default."""
    return {} if settings.prox is None else {"prox": settings.prox}


def build_rule(settings: RuleSettings) -> UpdateRule:
    """The update rule."""
    if settings.rule == "learned":
        return LearnedSGD()
    rules: dict[str, type[SGD | Momentum | Adam]] = {
        "sgd": SGD,
        "momentum": Momentum,
        "adam": Adam,
    }
    return rules[settings.rule](settings.step_size)


def build_adaptation(config: Config) -> Adaptation:
    """The inner steps at test time."""
    return Adaptation(config.adaptation.steps, build_rule(config.adaptation))


def build_strategy(config: Config) -> Strategy:
    """The hypergradient strategy."""
    settings, steps, rule = config.strategy, config.inner.steps, build_rule(config.inner)
    if settings.name == "unroll":
        truncate = None if settings.truncate < 0 else settings.truncate
        return Unroll(steps, rule, settings.first_order, truncate, settings.recompute)
    if settings.name == "implicit":
        return Implicit(steps, rule, _solver(settings, config.inner.step_size))
    return Penalty(
        steps,
        rule,
        rho=settings.rho,
        lam=settings.lam,
        epsilon=settings.epsilon,
        multiplier=settings.multiplier,
    )


def _solver(settings: StrategySettings, step_size: float) -> LinearSolver:
    if settings.solver == "cg":
        return ConjugateGradient(settings.solver_steps, settings.damping)
    if settings.solver == "neumann":
        return Neumann(settings.solver_steps, step_size, settings.damping)
    return OneStep(step_size)


def _encoder(settings: ProblemSettings, channels: int) -> nn.Module:
    if settings.network == "conv4":
        return Conv4(channels=channels, hidden=settings.hidden, norm=settings.norm)
    if settings.network in NETWORKS:
        return ResNet12(
            channels=channels,
            widths=WIDE if settings.network == "resnet12" else NARROW,
            norm=settings.norm,
            drop_block=settings.drop_block,
            drop_rate=settings.drop_rate,
        )
    module_name, _, function = settings.network.partition(":")
    try:
        network = getattr(importlib.import_module(module_name), function)()
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ConfigurationError(
            f"network '{settings.network}' cannot be made ({error}): use {', '.join(NETWORKS)}, or "
            "module:function for a function without arguments that returns a module, in a file "
            "that Python finds (its folder is in PYTHONPATH)"
        ) from error
    if not isinstance(network, nn.Module):
        raise ConfigurationError(
            f"network '{settings.network}' returned {type(network).__name__}, not a torch module"
        )
    return network


@torch.no_grad()
def _feature_count(encoder: nn.Module, image: torch.Size, dtype: torch.dtype) -> int:
    """D of the encoder's features ``[B, D]`` of images ``[B, C, H, W]``."""
    was_training = encoder.training
    encoder.eval()  # The running statistics of a pretrained network stay as they are.
    try:
        features: torch.Tensor = encoder(torch.zeros(2, *image, dtype=dtype))
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ConfigurationError(
            f"the network fails on images of shape {list(image)} ({reason}): set data.size, or "
            "use a network for such images"
        ) from error
    finally:
        encoder.train(was_training)
    if features.ndim != 2:
        raise ConfigurationError(
            f"the network returns shape {list(features.shape)} for 2 images; it must return "
            "features [2, D]: flatten or pool its output"
        )
    return features.shape[1]


def _dtype(config: Config) -> torch.dtype:
    return torch.float64 if config.dtype == "float64" else torch.float32
