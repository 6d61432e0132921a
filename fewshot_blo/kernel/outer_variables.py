"""Outer variables of few-shot problems by group, with one flat name each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

from fewshot_blo.bilevel import Params
from fewshot_blo.errors import ConfigurationError

_PREFIXES = {
    "start": "start/",
    "head": "head/",
    "step_sizes": "step_size/",
    "classifier": "classifier/",
}
"""Prefix of a group's flat names; variables of the encoder keep the network's own names."""

_SINGLE = {"features": "features", "regularisation": "log_prox"}
"""Groups of a single variable, with its flat name."""


@dataclass(frozen=True, eq=False, repr=False)
class OuterVariables(Mapping[str, Tensor]):
    """The outer variables of a few-shot problem by group, and by flat name as one mapping.

    Problems work with the groups; strategies, the optimizer and checkpoints with the flat names.

    Attributes:
        features: features of a batch's images, leaf tensors in place of the encoder's parameters.
        encoder: parameters of the network, by the network's own names.
        start: learned initial parameters of a head, by the names of inner parameters.
        regularisation: logarithm of the weight of the proximal term.
        head: parameters that a head shares between tasks, by the head's own names.
        step_sizes: learned step sizes, by the names of inner parameters.
        classifier: classifier of all training classes, by the names of a head's parameters.

    Raises:
        ConfigurationError: if two variables have the same flat name.
    """

    features: Tensor | None = None
    encoder: Params = field(default_factory=dict)
    start: Params = field(default_factory=dict)
    regularisation: Tensor | None = None
    head: Params = field(default_factory=dict)
    step_sizes: Params = field(default_factory=dict)
    classifier: Params = field(default_factory=dict)
    _flat: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        # In the order of the groups: the state of an optimizer goes by position.
        flat: dict[str, Tensor] = {}
        for group in (item.name for item in fields(self) if item.init):
            value: Any = getattr(self, group)
            if group in _SINGLE:
                named = {} if value is None else {_SINGLE[group]: value}
            else:
                named = {self.flat_name(group, name): leaf for name, leaf in value.items()}
            if twice := sorted(flat.keys() & named.keys()):
                raise ConfigurationError(
                    f"two outer variables are named '{twice[0]}': rename that parameter of the "
                    "network"
                )
            flat.update(named)
        object.__setattr__(self, "_flat", flat)

    @classmethod
    def grouped(cls, flat: Params) -> OuterVariables:
        """Groups of variables, or of their gradients, from a mapping by flat name."""
        if isinstance(flat, OuterVariables):
            return flat
        groups: dict[str, Any] = {}
        single = {name: group for group, name in _SINGLE.items()}
        for name, leaf in flat.items():
            if name in single:
                groups[single[name]] = leaf
                continue
            found = (group for group, prefix in _PREFIXES.items() if name.startswith(prefix))
            group = next(found, "encoder")
            groups.setdefault(group, {})[name.removeprefix(_PREFIXES.get(group, ""))] = leaf
        return cls(**groups)

    @staticmethod
    def flat_name(group: str, name: str) -> str:
        """The flat name of a variable of a group."""
        return _PREFIXES.get(group, "") + name

    @property
    def places(self) -> dict[str, str]:
        """``group/name`` of each variable by its flat name; ``group`` for a single one."""
        found = {_SINGLE[group]: group for group in _SINGLE if _SINGLE[group] in self}
        for group in ("encoder", *_PREFIXES):
            found |= {self.flat_name(group, n): f"{group}/{n}" for n in getattr(self, group)}
        return found

    def __getitem__(self, name: str) -> Tensor:
        return self._flat[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._flat)

    def __len__(self) -> int:
        return len(self._flat)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {list(leaf.shape)}" for name, leaf in self.items())
        return f"{type(self).__name__}({shapes})"
