"""``fewshot-blo recipes``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fewshot_blo.commands.options import Options
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.records.checked import checked
from fewshot_blo.records.published import PublishedRow, published_rows
from fewshot_blo.records.shipped import (
    recipe_file,
    recipe_instead_of,
    recipe_name,
    recipe_names,
    recipe_title,
)


@checked
@dataclass(frozen=True)
class RecipesRequest:
    """Which recipe.

    Attributes:
        recipe: name of a recipe, as omniglot-5w1s/maml, whose file is printed; empty to list all.
        rows: list the published rows, of this recipe or of all, with the digest of their settings
            and the first of their figures.
    """

    recipe: str = ""
    rows: bool = False


OPTIONS = Options((RecipesRequest,), positional="recipe")


def run(request: RecipesRequest) -> int:
    """Runs it; returns the exit status."""
    if request.recipe:
        file = recipe_file(Path(request.recipe))
        if not file.is_file():
            raise ConfigurationError(
                f"there is no recipe '{request.recipe}'{recipe_instead_of(Path(request.recipe))}"
            )
        if not request.rows:
            print(file.read_text(encoding="utf-8"), end="")
            return 0
    if request.rows:
        _list_rows(recipe_name(Path(request.recipe)) if request.recipe else "")
    else:
        _list_recipes()
    return 0


def _list_recipes() -> None:
    names = recipe_names()
    width = max(map(len, names))
    for name in names:
        print(f"{name:{width}}  {recipe_title(name)}".rstrip())
    print(
        "\nfewshot-blo train --config NAME; those of studies/: fewshot-blo study NAME; several: "
        "fewshot-blo compare NAME NAME; figures published with them: fewshot-blo recipes --rows"
    )


def _list_rows(recipe: str) -> None:
    """Prints the published rows of a recipe, or all."""
    rows = published_rows()
    found = [row for row in rows.values() if recipe in ("", rows.get(row.of, row).recipe)]
    if not found:
        print(f"no figure is published with {recipe}")
        return
    width = max(len(row.name) for row in found)
    for row in found:
        digest = rows.get(row.of, row).digest or "released"
        print(f"{row.name:{width}}  {digest:12}  {_first(row)}  {row.title}")
    print("\nfewshot-blo compare --reproduce ROW --root DIR trains a row again")


def _first(row: PublishedRow) -> str:
    norm, figure = next(iter(row.figures.items()))
    return f"{figure.mean:.2f} ± {figure.interval:.2f} ({norm})"
