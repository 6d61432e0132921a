"""Ways to draw tasks from the classes of a data set, one file each."""

from __future__ import annotations

from fewshot_blo.tasks.protocols.dirichlet import Dirichlet
from fewshot_blo.tasks.protocols.episodic import Episodic
from fewshot_blo.tasks.protocols.meta_dataset import MetaDataset
from fewshot_blo.tasks.protocols.open_set import OpenSet
from fewshot_blo.tasks.protocols.protocol import Classes, Plan, Protocol, Sizes
from fewshot_blo.tasks.protocols.remaining import Remaining
from fewshot_blo.tasks.protocols.unequal import Unequal

__all__ = [
    "PROTOCOLS",
    "Classes",
    "Dirichlet",
    "Episodic",
    "MetaDataset",
    "OpenSet",
    "Plan",
    "Protocol",
    "Remaining",
    "Sizes",
    "Unequal",
]

PROTOCOLS: tuple[type[Protocol], ...] = (
    Episodic,
    Unequal,
    MetaDataset,
    Dirichlet,
    OpenSet,
    Remaining,
)
