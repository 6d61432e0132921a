"""``fewshot-blo models``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fewshot_blo.commands.options import Options
from fewshot_blo.models.card import read_metadata
from fewshot_blo.records.checked import checked
from fewshot_blo.records.shipped import released_folder, released_models


@checked
@dataclass(frozen=True)
class ModelsRequest:
    """Which model.

    Attributes:
        model: name of a released model, whose card is printed; empty to list all.
    """

    model: str = ""


OPTIONS = Options((ModelsRequest,), positional="model")


def run(request: ModelsRequest) -> int:
    """Runs it; returns the exit status."""
    if request.model:
        print((released_folder(request.model) / "card.md").read_text(encoding="utf-8"), end="")
        return 0
    rows = [_HEADER, *map(_row, released_models())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print(
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        )
    print(
        "\nAccuracy on test classes with 95 % confidence interval, in the norm mode that is named. "
        "The card has the others: fewshot-blo models NAME"
    )
    return 0


_HEADER = ("name", "data set", "tasks", "backbone", "method", "accuracy, %", "KiB")


def _row(name: str) -> tuple[str, ...]:
    folder = released_folder(name)
    card = (folder / "card.md").read_text(encoding="utf-8")
    result = read_metadata(card)["model-index"][0]["results"][0]
    best = next(m for m in result["metrics"] if "support" in m["name"])
    facts = dict(_cells(line) for line in card.splitlines() if line.startswith("| "))
    return (
        name,
        result["dataset"]["name"],
        result["task"]["name"],
        facts["backbone"].partition(":")[0],
        facts["method"],
        _accuracy(best),
        f"{(folder / 'best.pt').stat().st_size / 2**10:.0f}",
    )


def _cells(line: str) -> tuple[str, str]:
    """The first two cells of a row of a table in Markdown."""
    first, second = line.strip("| ").split(" | ")[:2]
    return first, second


def _accuracy(metric: Mapping[str, Any]) -> str:
    return f"{metric['value']:.2f} ± {metric['interval_95']:.2f} (support)"
