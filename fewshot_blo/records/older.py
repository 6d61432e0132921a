"""Conversion of settings and strategy states of earlier versions to today's form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fewshot_blo.errors import ConfigurationError

Tree = dict[str, Any]

_DATA = {
    "glyphs": "Glyphs",
    "omniglot": "Omniglot",
    "miniimagenet": "MiniImageNet",
    "tieredimagenet": "TieredImageNet",
    "cifarfs": "CIFARFS",
    "fc100": "FC100",
    "folder": "Folder",
}
_DATA_SETTINGS = {
    "Glyphs": ("size",),
    "Omniglot": ("root", "split", "rotations", "mirrors", "size", "download"),
    "MiniImageNet": ("root", "size"),
    "TieredImageNet": ("root", "size"),
    "CIFARFS": ("root", "size", "download"),
    "FC100": ("root", "size", "download"),
    "Folder": ("root", "csv", "seed", "color", "size"),
}
_PROBLEMS = {
    "shared_encoder": "SharedEncoder",
    "initialization": "Initialization",
    "pretraining": "Pretraining",
}
_HEADS = {
    "linear": "Linear",
    "cosine": "Cosine",
    "ridge": "Ridge",
    "max_margin": "MaxMargin",
    "matching": "Matching",
    "full_context": "FullContext",
    "relation": "Relation",
    "propagation": "LabelPropagation",
}
_SCALED = ("Cosine", "Ridge", "MaxMargin", "Matching", "FullContext")
_RULES = {"sgd": "SGD", "momentum": "Momentum", "adam": "Adam", "learned": "LearnedSGD"}
_SOLVERS = {"cg": "ConjugateGradient", "neumann": "Neumann", "one_step": "OneStep"}
_STRATEGIES = {
    "unroll": "Unroll",
    "implicit": "Implicit",
    "penalty": "Penalty",
    "value_function": "ValueFunction",
    "bome": "BOME",
    "reptile": "Reptile",
}
_STRATEGY_SETTINGS = {
    "Unroll": ("first_order", "first_order_steps", "multi_step", "recompute"),
    "Implicit": (),
    "Penalty": (
        "rho",
        "lam",
        "epsilon",
        "multiplier",
        "rho_growth",
        "lam_decay",
        "epsilon_decay",
    ),
    "ValueFunction": ("value_steps", "lam", "lam_growth", "lam_max", "continued"),
    "BOME": ("value_steps", "eta"),
    "Reptile": ("query_weight",),
}
_LIBRARIES = ("torchvision:", "timm:", "hf:")
_INNER = "steps rule step_size"
_SECTIONS = {
    "data": "name root split rotations mirrors size csv seed color download",
    "problem": "name network weights input_size sharpen hidden pools norm drop_block drop_rate "
    "prox classes start_from learn_prox head start unit centre scale lam margin_weight adapt "
    "step_sizes backend prove slices precision",
    "strategy": "name first_order first_order_steps multi_step truncate recompute solver "
    "solver_steps solver_step_size damping rho lam epsilon multiplier rho_growth lam_decay "
    "epsilon_decay value_steps lam_growth lam_max continued eta query_weight",
    "inner": _INNER,
    "adaptation": _INNER,
}
"""All settings of the earlier form, by section."""


def is_flat(settings: Mapping[str, Any]) -> bool:
    """Whether a run's settings have the earlier flat form, without named components."""
    problem, data, strategy = (settings.get(n) for n in ("problem", "data", "strategy"))
    return (
        "inner" in settings
        or (isinstance(problem, Mapping) and problem.get("name") in _PROBLEMS)
        or (isinstance(problem, Mapping) and "network" in problem)
        or (isinstance(data, Mapping) and data.get("name") in _DATA)
        or (isinstance(strategy, Mapping) and strategy.get("name") in _STRATEGIES)
    )


def settings_of_run(flat: Mapping[str, Any]) -> Tree:
    """Converts a run's settings to today's form; settings already in today's form are unchanged.

    Raises:
        ConfigurationError: if a setting of the earlier form is unknown.
    """
    if not is_flat(flat):
        return dict(flat)
    for section in _SECTIONS:
        _check(section, flat.get(section, {}))
    problem, inner = flat.get("problem", {}), flat.get("inner", {})
    per_step = problem.get("step_sizes") == "step"
    tree = {name: value for name, value in flat.items() if name not in _SECTIONS}
    tree["data"] = _data(flat.get("data", {}))
    tree["encoder"] = _encoder(problem, inner)
    tree["problem"] = _problem(problem, inner)
    tree["strategy"] = strategy_of_run(flat.get("strategy", {}), inner, per_step=per_step)
    # The earlier default was ten steps.
    adaptation = {"steps": 10, **flat.get("adaptation", {})}
    tree["adaptation"] = _inner_steps(adaptation, per_step=per_step)
    tree["start_from"] = problem.get("start_from", "")
    return tree


def strategy_of_run(
    flat: Mapping[str, Any], inner: Mapping[str, Any], *, per_step: bool = False
) -> Tree:
    """Converts a strategy and its inner steps to today's form.

    Raises:
        ConfigurationError: if a setting is unknown.
    """
    _check("strategy", flat)
    _check("inner", inner)
    name = _today(_STRATEGIES, flat.get("name", "unroll"), "strategy.name")
    found: Tree = {"name": name, "inner": _inner_steps(inner, per_step=per_step)}
    found |= _given(flat, _STRATEGY_SETTINGS[name], without=None)
    if name == "Unroll":
        found["recompute"] = flat.get("recompute")
        found |= _given(flat, ("truncate",), without=-1)
    if name == "Implicit":
        found["solve"] = _solver(flat, inner)
    return found


def _check(section: str, flat: object) -> None:
    """Raises if a section of the earlier form is not a mapping, or has an unknown setting."""
    if not isinstance(flat, Mapping):
        raise ConfigurationError(
            f"{section} is {flat}: it must be a mapping of settings, because other settings have "
            "the form of earlier versions (a section inner, or component names in lower case)"
        )
    unknown = [name for name in flat if name not in _SECTIONS[section].split()]
    if unknown:
        raise ConfigurationError(
            f"there is no setting '{section}.{unknown[0]}' in the form of earlier versions, which "
            "these settings have; use that form or today's throughout"
        )


def _today(names: Mapping[str, str], name: object, place: str) -> str:
    """Today's name of a component, from its lower-case name in the earlier form."""
    if str(name) not in names:
        raise ConfigurationError(f"{place} is '{name}': use one of {', '.join(names.values())}")
    return names[str(name)]


def _given(flat: Mapping[str, Any], names: tuple[str, ...], *, without: object) -> Tree:
    return {name: flat[name] for name in names if name in flat and flat[name] != without}


def _data(flat: Mapping[str, Any]) -> Tree:
    name = _today(_DATA, flat.get("name", "glyphs"), "data.name")
    found = {"name": name, **_given(flat, _DATA_SETTINGS[name], without=None)}
    if not found.get("size"):  # 0 stood for the default size.
        found.pop("size", None)
    return found


def _inner_steps(flat: Mapping[str, Any], *, per_step: bool) -> Tree:
    name = _today(_RULES, flat.get("rule", "sgd"), "inner.rule")
    size = flat.get("step_size", 0.5)
    rule = {"per_step": per_step} if name == "LearnedSGD" else {"step_size": size}
    return {"steps": flat.get("steps", 5), "rule": {"name": name, **rule}}


def _solver(flat: Mapping[str, Any], inner: Mapping[str, Any]) -> Tree:
    name = _today(_SOLVERS, flat.get("solver", "cg"), "strategy.solver")
    steps, damping = flat.get("solver_steps", 5), flat.get("damping", 0.0)
    size = flat.get("solver_step_size", 0.0) or inner.get("step_size", 0.5)
    return {
        "name": name,
        **({} if name == "ConjugateGradient" else {"step_size": size}),
        **({} if name == "OneStep" else {"steps": steps, "damping": damping}),
    }


def _encoder(problem: Mapping[str, Any], inner: Mapping[str, Any]) -> Tree:
    network, steps = problem.get("network", "conv4"), inner.get("steps", 5)
    stepwise = {"steps": steps} if problem.get("norm") == "stepwise" else {}
    size, sharpen = problem.get("input_size", 0), problem.get("sharpen", 0.0)
    # Settings that the network does not have are refused when it is built.
    seen = {**({"size": size} if size else {}), **({"sharpen": sharpen} if sharpen else {})}
    seen |= _given(problem, ("weights",), without="")
    if network.startswith(_LIBRARIES):
        return {"name": "pretrained", "network": network, **seen}
    if network == "conv4":
        found = {"name": "Conv4", **_given(problem, ("hidden", "norm", "pools"), without=None)}
    elif network == "wrn_28_10":
        # The network's default differs from that of the earlier settings.
        found = {"name": "WideResNet", "drop_rate": 0.1}
        found |= _given(problem, ("norm", "drop_rate"), without=None)
    elif network in ("resnet12", "resnet12_narrow"):
        widths = {} if network == "resnet12" else {"widths": [64, 128, 256, 512]}
        own = _given(problem, ("norm", "drop_block", "drop_rate"), without=None)
        found = {"name": "ResNet12", **widths, **own}
    else:
        return {"name": "own", "function": network, **seen}
    return {**found, **stepwise, **seen}


def _problem(flat: Mapping[str, Any], inner: Mapping[str, Any]) -> Tree:
    name = _today(_PROBLEMS, flat.get("name", "shared_encoder"), "problem.name")
    common = _given(flat, ("backend", "prove", "precision", "start"), without=None)
    if name == "Initialization":
        found = {"name": name, **common, "prox": flat.get("prox") or 0.0}
        found["adapted"] = flat.get("adapt", "all")
        if inner.get("rule") == "learned":
            found["step_size"] = inner.get("step_size", 0.5)
            found["entry_steps"] = flat.get("step_sizes") == "entry"
            found["own_steps"] = inner.get("steps", 5) if flat.get("step_sizes") == "step" else 0
        return found
    learned = ("classes",) if name == "Pretraining" else ("learn_prox",)
    own = _given(flat, ("prox", "unit", "centre", "slices", *learned), without=None)
    return {"name": name, **common, **own, "head": _head(flat)}


def _head(flat: Mapping[str, Any]) -> Tree:
    name = _today(_HEADS, flat.get("head", "linear"), "problem.head")
    found: Tree = {"name": name}
    if name in _SCALED:
        found |= _given(flat, ("scale",), without=None)
    if name == "Ridge":
        found |= _given(flat, ("lam",), without=None)
    if name == "MaxMargin" and "margin_weight" in flat:
        found["c"] = flat["margin_weight"]
    if name == "Relation" and flat.get("network", "conv4") == "conv4":
        found["channels"] = flat.get("hidden", 64)
    return found


def best_validation(best: Mapping[str, Any]) -> Tree:
    """Step and value of the best validation, which was an accuracy before."""
    return {"value" if name == "accuracy" else name: value for name, value in best.items()}


def state_of_strategy(state: Mapping[str, Any]) -> Tree:
    """State of a strategy in today's form, from a checkpoint of either form."""
    if "scalars" not in state:
        return dict(state)
    multipliers = {} if "rho" not in state["scalars"] else {"multipliers": state["multipliers"]}
    return {"inner": state["inner"], **state["scalars"], **multipliers}
