"""The zoo's rows as a table in Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from zoo.compare import TOLERANCE, VERDICTS, Row
from zoo.oracle import STEP_SIZE, STEPS

_REMARK = 240


def table(rows: Sequence[Row], versions: str) -> str:
    """The whole file."""
    return "\n\n".join([_head(versions), _summary(rows), *_sections(rows)]) + "\n"


def line(row: Row) -> str:
    """One row, for the terminal."""
    figures = " ".join(f"{name} {_figure(d)}" for name, d in row.differences.items())
    name = f"{row.family} {row.name} [{row.backend}]"
    remarks = "; ".join(row.remarks)[:_REMARK]
    return f"{row.verdict:12} {name} {figures} {row.seconds:.1f} s {remarks}"


def _head(versions: str) -> str:
    return f"""# The zoo

Made by `python -m zoo --output docs/zoo.md` with {versions}, on one CPU core a network.

Every network is checked against the user's own module, unconverted, in a plain PyTorch loop over
two tasks: float64, random weights, training mode, copies of the buffers at every call, {STEPS}
inner steps of SGD with step size {STEP_SIZE}. Differences are relative, the larger of the query
losses' and the gradient's, for first and second order with all parameters adapted, and for the
encoder's gradient under a linear head that adapts. `none`: PyTorch has no such derivative.

- **agrees**: to {TOLERANCE:g}, or as a remark says.
- **keyed**: the module draws random numbers, which in the kernel follow from keys; it is compared
  with the module itself on those numbers.
- **warned**: two calls of the module itself differ, and the kernel says so.
- **torch cannot**: the plain loop fails as well.
- **refused**: one clear error of the project, with the remedy.
- **DISAGREES**, **CRASH**: defects; the command ends with status 1."""


def _summary(rows: Sequence[Row]) -> str:
    families = list(dict.fromkeys(row.family for row in rows))
    lines = ["| family | networks | " + " | ".join(VERDICTS) + " |"]
    lines.append("| --- " * (2 + len(VERDICTS)) + "|")
    for family in families:
        count = Counter(row.verdict for row in rows if row.family == family)
        cells = " | ".join(str(count[verdict]) for verdict in VERDICTS)
        lines.append(f"| {family} | {sum(count.values())} | {cells} |")
    return "\n".join(lines)


def _sections(rows: Sequence[Row]) -> list[str]:
    sections = []
    for family in dict.fromkeys(row.family for row in rows):
        lines = [
            f"## {family}",
            "",
            "| network | backend | verdict | first order | second order | encoder | s | remark |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        lines += [_row(row) for row in rows if row.family == family]
        sections.append("\n".join(lines))
    return sections


def _row(row: Row) -> str:
    figures = [_figure(row.differences.get(name, "")) for name in ("first", "second", "encoder")]
    remark = "; ".join(row.remarks).replace("|", "\\|").replace("\n", " ")
    if len(remark) > _REMARK:
        remark = remark[:_REMARK] + " ..."
    backends = set(row.backend.split("/"))
    backend = row.backend if len(backends) > 1 else backends.pop()
    cells = [row.name, backend, row.verdict, *figures, f"{row.seconds:.1f}", remark]
    return "| " + " | ".join(cells) + " |"


def _figure(difference: float | str) -> str:
    return difference if isinstance(difference, str) else f"{difference:.0e}"


def versions() -> str:
    """Versions of the libraries that are installed."""
    from importlib.metadata import PackageNotFoundError, version

    found = [f"torch {torch.__version__}"]
    for name in ("torchvision", "timm", "transformers"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)
