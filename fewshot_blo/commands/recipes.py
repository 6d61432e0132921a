"""``fewshot-blo recipes``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fewshot_blo.commands.options import Options
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.records.checked import checked
from fewshot_blo.records.shipped import (
    recipe_file,
    recipe_instead_of,
    recipe_names,
    recipe_title,
)


@checked
@dataclass(frozen=True)
class RecipesRequest:
    """Which recipe.

    Attributes:
        recipe: name of a recipe, as omniglot-5w1s/maml, whose file is printed; empty to list all.
    """

    recipe: str = ""


OPTIONS = Options((RecipesRequest,), positional="recipe")


def run(request: RecipesRequest) -> int:
    """Runs it; returns the exit status."""
    if request.recipe:
        file = recipe_file(Path(request.recipe))
        if not file.is_file():
            raise ConfigurationError(
                f"there is no recipe '{request.recipe}'{recipe_instead_of(Path(request.recipe))}"
            )
        print(file.read_text(encoding="utf-8"), end="")
        return 0
    names = recipe_names()
    width = max(map(len, names))
    for name in names:
        print(f"{name:{width}}  {recipe_title(name)}".rstrip())
    print(
        "\nfewshot-blo train --config NAME; those of studies/: fewshot-blo study NAME; several: "
        "fewshot-blo compare NAME NAME"
    )
    return 0
