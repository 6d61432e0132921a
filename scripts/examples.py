"""Runs the examples, ``docs/examples/NN_name.py``, and writes them as notebooks with outputs.

    python scripts/examples.py                 # runs all, writes docs/examples/NN_name.ipynb
    python scripts/examples.py 03 04           # those whose names begin so
    python scripts/examples.py --check         # runs all and writes nothing

A source is Python in the "percent" format: cells begin with a line ``# %%``, cells of text with
``# %% [markdown]``, and their lines are comments. Each example runs in a kernel of its own, in an
empty folder. An exception, a warning or what else ``faults`` finds is an error. So is a notebook
that took more than 120 s, where it is written: a check may run on a slower or busier machine. The
last cell of a notebook says what it was run with.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "examples"
SECONDS = 120
HANGING = 1200
Notebook = dict[str, Any]

# Runs in the kernel before the first cell. Titles of figures become their alternative text, which
# readers of screens hear and `faults` reads, as it reads what a figure lacks. Titles of panels will
# do for a figure.
_SET_UP = """
import io
import matplotlib.pyplot
from IPython import get_ipython
from matplotlib.figure import Figure
from fewshot_blo.records.figure_check import below_standard

def _png(figure):
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    titles = [figure.get_suptitle(), *(axes.get_title() for axes in figure.axes)]
    below = [fault for fault in below_standard(figure) if fault != "the figure has no title"]
    described = {"alt": "; ".join(title for title in titles if title)}
    return file.getvalue(), described | ({"below_standard": below} if below else {})

matplotlib.pyplot.figure().clear()
matplotlib.pyplot.close("all")
get_ipython().display_formatter.formatters["image/png"].for_type(Figure, _png)
"""


def main() -> None:
    """Runs the examples and ends with an error if one has faults."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="how names of examples begin; all by default")
    parser.add_argument("--check", action="store_true", help="write no notebook")
    options = parser.parse_args()
    chosen = [path for path in sources() if not options.names or _named(path, options.names)]
    if not chosen:
        parser.error(f"no example in {FOLDER} begins with {', '.join(options.names)}")
    commit, failed = _commit(), 0
    for path in chosen:
        begun = time.monotonic()
        found, ran = run(notebook(path.read_text(encoding="utf-8")))
        seconds = time.monotonic() - begun
        if seconds > SECONDS and not options.check:
            found.append(f"took {seconds:.0f} s, but at most {SECONDS} s are allowed")
        failed += bool(found)
        print(f"{path.stem}: {seconds:.0f} s", *found, sep="\n  ", flush=True)
        if not found and not options.check:
            ran["cells"].append(_text_cell(len(ran["cells"]), _run_with(commit, seconds)))
            text = json.dumps(ran, indent=1, ensure_ascii=False, sort_keys=True)
            path.with_suffix(".ipynb").write_text(text + "\n", encoding="utf-8")
    if failed:
        sys.exit(f"{failed} of {len(chosen)} examples failed")


def sources() -> list[Path]:
    """The sources of all examples, in order."""
    return sorted(FOLDER.glob("[0-9][0-9]_*.py"))


def notebook(source: str) -> Notebook:
    """A source in the percent format as a notebook without outputs.

    Raises:
        ValueError: if there is text before the first cell, or code in a cell of text.
    """
    before, *parts = re.split(r"^# %%(.*)\n", source, flags=re.MULTILINE)
    if before.strip():
        raise ValueError(f"line 1 is {before.splitlines()[0]!r}, which is in no cell: add '# %%'")
    cells: list[Notebook] = []
    for kind, body in zip(parts[::2], parts[1::2], strict=True):
        number, lines = len(cells), body.strip("\n")
        if kind.strip() == "[markdown]":
            cells.append(_text_cell(number, "\n".join(_uncommented(lines))))
        else:
            cells.append({**_cell(number, "code", lines), "execution_count": None, "outputs": []})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def run(example: Notebook) -> tuple[list[str], Notebook]:
    """Runs a notebook in a new kernel and an empty folder.

    Returns:
        What is wrong with it, in sentences, and the notebook with its outputs.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError

    # Else IPython warns of modules that were loaded before its debugger.
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    nbformat: Any = importlib.import_module("nbformat")  # Its functions have no types.
    node = nbformat.from_dict(example)
    with tempfile.TemporaryDirectory(prefix="example") as folder:
        client = NotebookClient(node, timeout=HANGING, resources={"metadata": {"path": folder}})
        try:
            with client.setup_kernel():
                set_up = nbformat.from_dict({**_cell(0, "code", _SET_UP), "outputs": []})
                node.cells.append(set_up)
                client.execute_cell(set_up, len(node.cells) - 1, store_history=False)
                node.cells.pop()
                for index, cell in enumerate(node.cells):
                    client.execute_cell(cell, index)
        except CellExecutionError as error:
            return [str(error)], example
        except CellTimeoutError:
            return [f"a cell took more than {HANGING} s"], example
    ran: Notebook = json.loads(json.dumps(node))
    for cell in ran["cells"]:
        cell["metadata"] = {}
    return list(faults(ran)), ran


def faults(ran: Notebook) -> Iterator[str]:
    """What the outputs of a notebook must not have, in sentences."""
    cells = [cell for cell in ran["cells"] if cell["cell_type"] == "code"]
    outputs = [(n, output) for n, cell in enumerate(cells, 1) for output in cell["outputs"]]
    if not outputs:
        yield "no cell has an output"
    for number, output in outputs:
        where = f"code cell {number}"
        if output["output_type"] == "error":
            yield f"{where} raised {output['ename']}"
        elif output["output_type"] == "stream":
            if output["name"] == "stderr":
                yield f"{where} wrote to stderr: {output['text']!r}"
            yield from (f"{where} names {path}" for path in _machine_paths(output["text"]))
        else:
            if "image/png" in output["data"]:
                picture = output["metadata"]["image/png"]
                if not picture.get("alt"):
                    yield f"{where} has a picture without a title"
                yield from (f"{where}: {fault}" for fault in picture.get("below_standard", ()))
            text = json.dumps({k: v for k, v in output["data"].items() if k != "image/png"})
            yield from (f"{where} names {path}" for path in _machine_paths(text))


def _machine_paths(text: str) -> list[str]:
    """Absolute paths in a text, but for the addresses of the server's thumbnails."""
    return re.findall(r"(?<![\w.:/])/(?!training/\d)(?:[\w.-]+/)+[\w.-]*", text)


def _cell(number: int, kind: str, source: str) -> Notebook:
    return {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": source}


def _text_cell(number: int, text: str) -> Notebook:
    return _cell(number, "markdown", text)


def _uncommented(lines: str) -> Iterator[str]:
    for line in lines.splitlines():
        if line and not line.startswith("#"):
            raise ValueError(f"a cell of text has the line {line!r}: begin it with '# '")
        yield line.removeprefix("#").removeprefix(" ")


def _named(path: Path, beginnings: list[str]) -> bool:
    return any(path.name.startswith(beginning) for beginning in beginnings)


def _run_with(commit: str, seconds: float) -> str:
    """The last cell: what the notebook was run with."""
    import torch

    from fewshot_blo.records.provenance import provenance

    device = provenance(torch.device("cpu"))["device"]
    return (
        f"*Run by `scripts/examples.py` at commit `{commit}` in {seconds:.0f} s: "
        f"torch {torch.__version__}, Python {platform.python_version()}, "
        f"{device}, {os.cpu_count()} cores.*"
    )


def _commit() -> str:
    """The commit that is run, ``-dirty`` if files other than notebooks differ from it."""
    git = ("git", "-C", str(ROOT))
    asked = {"check": True, "capture_output": True, "text": True}
    described = subprocess.run([*git, "describe", "--always"], **asked).stdout.strip()  # type: ignore[call-overload]
    others = ("--", str(ROOT), ":(exclude)docs/examples/*.ipynb")
    changed = subprocess.run([*git, "status", "--porcelain", *others], **asked).stdout  # type: ignore[call-overload]
    return f"{described}-dirty" if changed else str(described)


if __name__ == "__main__":
    main()
