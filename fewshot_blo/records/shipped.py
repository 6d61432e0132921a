"""What comes with the package, by name: released models and recipes."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from fewshot_blo.errors import CheckpointError

# Links in a checkout to checkpoints/released and recipes; folders in an installed package.
_PACKAGE = Path(__file__).resolve().parents[1]
RELEASED, RECIPES = _PACKAGE / "released", _PACKAGE / "recipes"
_CHECKPOINT, _SUFFIX = "best.pt", ".yaml"


def released_models() -> list[str]:
    """The names of the released models, sorted."""
    return sorted(path.parent.name for path in RELEASED.glob(f"*/{_CHECKPOINT}"))


def released_folder(name: str) -> Path:
    """The folder of a released model: its checkpoint, settings and card.

    Raises:
        CheckpointError: if there is no model of this name; the nearest names are in the message.
    """
    known = released_models()
    if name not in known:
        raise CheckpointError(f"there is no released model '{name}': {_nearest(name, known)}")
    return RELEASED / name


def checkpoint_file(path: Path) -> Path:
    """The checkpoint of a released model, where ``path`` is its name and no file; else ``path``."""
    if not path.exists() and str(path) in released_models():
        return RELEASED / path / _CHECKPOINT
    return path


def instead_of(path: Path) -> str:
    """The released model that a missing file was most likely meant to name, as a remedy."""
    if path.suffix or len(path.parts) > 1:
        return ""
    close = difflib.get_close_matches(str(path), released_models())
    return f", or name a released model ({', '.join(close)})" if close else ""


def recipe_names() -> list[str]:
    """The names of the recipes, sorted, as ``omniglot-5w1s/maml``."""
    files = RECIPES.rglob(f"*{_SUFFIX}")
    return sorted(path.relative_to(RECIPES).as_posix().removesuffix(_SUFFIX) for path in files)


def recipe_file(path: Path) -> Path:
    """The file of a recipe of the package, where ``path`` names one and no file; else ``path``.

    The name may begin with the folder ``recipes`` and end with the suffix of its file.
    """
    name = recipe_name(path)
    if not path.expanduser().is_file() and name in recipe_names():
        return RECIPES / f"{name}{_SUFFIX}"
    return path


def recipe_instead_of(path: Path) -> str:
    """The recipes that a missing file was most likely meant to name, as a remedy."""
    close = difflib.get_close_matches(recipe_name(path), recipe_names())
    return f"; recipes of the package with such names: {', '.join(close)}" if close else ""


def recipe_name(path: Path) -> str:
    """The name of a recipe, from a path that may begin with ``recipes`` and end with its suffix."""
    return path.as_posix().removeprefix("recipes/").removesuffix(_SUFFIX)


def recipe_title(name: str) -> str:
    """The first comment of a recipe, without its mark; empty without one."""
    first = (RECIPES / f"{name}{_SUFFIX}").read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known)
    return f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(known)}"
