"""What well-known methods are here: the settings that make each, and its recipe."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """A method of the literature.

    Attributes:
        title: as its paper has it.
        options: that make it, the rest as usual.
        recipe: of that name in recipes/omniglot-5w1s.
    """

    title: str
    options: str
    recipe: str


_HEAD = "--problem SharedEncoder"
_ALL = "--problem Initialization"
_CLOSED = "--strategy Unroll --strategy.inner.steps 0"
_LEARNED = "--problem.step_size 0.1 --strategy.inner.rule LearnedSGD"

METHODS = {
    "maml": Method("MAML", f"{_ALL} --strategy Unroll", "maml"),
    "fomaml": Method(
        "first-order MAML", f"{_ALL} --strategy Unroll --strategy.first_order", "fomaml"
    ),
    "maml++": Method(
        "MAML++",
        f"{_ALL} {_LEARNED} --strategy.inner.rule.per_step --strategy.multi_step 1000",
        "maml++",
    ),
    "anil": Method("ANIL", f"{_ALL} --problem.adapted head --strategy Unroll", "anil"),
    "boil": Method("BOIL", f"{_ALL} --problem.adapted body --strategy Unroll", "boil"),
    "reptile": Method("Reptile", f"{_ALL} --strategy Reptile", "reptile"),
    "imaml": Method("iMAML", f"{_ALL} --problem.prox 2 --strategy Implicit", "imaml"),
    "metasgd": Method("Meta-SGD", f"{_ALL} {_LEARNED} --problem.entry_steps", "meta-sgd"),
    "protomaml": Method(
        "Proto-MAML", f"{_ALL} --problem.start prototypes --strategy Unroll", "proto-maml"
    ),
    "protonet": Method(
        "Prototypical Networks", f"{_HEAD} --problem.start prototypes {_CLOSED}", "protonet"
    ),
    "r2d2": Method("R2D2", f"{_HEAD} --problem.head Ridge {_CLOSED}", "r2d2"),
    "metaoptnet": Method(
        "MetaOptNet", f"{_HEAD} --problem.head MaxMargin {_CLOSED}", "metaoptnet"
    ),
    "matchingnet": Method(
        "Matching Networks", f"{_HEAD} --problem.head Matching {_CLOSED}", "matchingnet"
    ),
    "relationnet": Method(
        "Relation Networks",
        f"{_HEAD} --problem.head Relation --encoder.pools 2 {_CLOSED}",
        "relationnet",
    ),
    "metabaseline": Method(
        "Meta-Baseline", f"{_HEAD} --problem.head Cosine {_CLOSED}", "meta-baseline"
    ),
    "labelpropagation": Method(
        "label propagation", f"{_HEAD} --problem.head LabelPropagation {_CLOSED}",
        "label-propagation",
    ),
    "baseline": Method("Baseline", f"--problem Pretraining {_CLOSED}", "baseline"),
    "baseline++": Method(
        "Baseline++", f"--problem Pretraining --problem.head Cosine {_CLOSED}", "baseline++"
    ),
    "simpleshot": Method(
        "SimpleShot", f"{_HEAD} --problem.unit --problem.centre {_CLOSED}", "simpleshot"
    ),
    "penalty": Method("the penalty method", f"{_HEAD} --strategy Penalty", "penalty"),
    "bome": Method("BOME", f"{_HEAD} --strategy BOME", "bome"),
    "f2ba": Method("F2BA", f"{_HEAD} --strategy ValueFunction", "f2ba"),
    "vpbgd": Method(
        "V-PBGD", f"{_HEAD} --strategy ValueFunction --strategy.continued", "v-pbgd"
    ),
    "implicit": Method(
        "implicit differentiation", f"{_HEAD} --strategy Implicit", "implicit-cg"
    ),
    "unroll": Method("unrolling", f"{_HEAD} --strategy Unroll", "unroll-head"),
}  # fmt: skip
"""By the name in small letters, without spaces and dashes."""

_OTHER_NAMES = {
    "prototypicalnetworks": "protonet",
    "prototypicalnetwork": "protonet",
    "protonets": "protonet",
    "prototypes": "protonet",
    "matchingnetworks": "matchingnet",
    "relationnetworks": "relationnet",
    "ridge": "r2d2",
    "svm": "metaoptnet",
    "aid": "implicit",
    "foml": "fomaml",
    "firstordermaml": "fomaml",
    "mamlpp": "maml++",
    "valuefunction": "f2ba",
    "hypergradient": "implicit",
}


def hint(name: str) -> str:
    """Which settings and recipe make the method of a name; empty for an unknown one."""
    small = "".join(c for c in name.lower() if c.isalnum() or c == "+")
    method = METHODS.get(_OTHER_NAMES.get(small, small))
    if method is None:
        return ""
    return (
        f"; {method.title} is {method.options}, in full --config "
        f"recipes/omniglot-5w1s/{method.recipe}.yaml"
    )
