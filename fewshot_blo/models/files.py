"""The folder of a saved model: tensors in safetensors, settings in JSON, and a card.

model.safetensors   outer/NAME and buffers/NAME
config.json         name, settings, shape and outputs: plain data
README.md           the card, with metadata in YAML
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fewshot_blo.errors import CheckpointError, installed_by
from fewshot_blo.records.files import atomic_write
from fewshot_blo.records.tensor_files import read_tensors

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
MOST_BYTES: Mapping[str, int] = {CONFIG: 2**20, CARD: 2**20, WEIGHTS: 2**32}
"""The files, with the size from which on they are refused."""

_FORMAT = 1
_MOST_PIXELS = 2**26


@dataclass(frozen=True)
class Stored:
    """What the folder of a model holds.

    Attributes:
        name: name of the model.
        settings: settings of the run, as plain data.
        shape: shape of one example, ``[C, H, W]`` of an image.
        outputs: number of outputs of a task.
        outer: outer variables by name.
        buffers: buffers of the network by name.
        card: text of the card.
    """

    name: str
    settings: Mapping[str, Any]
    shape: tuple[int, ...]
    outputs: int
    outer: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    card: str


def write_model(stored: Stored, folder: Path) -> None:
    """Writes the three files, each under another name first.

    Raises:
        CheckpointError: if the folder cannot be written to.
        ConfigurationError: if safetensors is not installed.
    """
    with installed_by("safetensors>=0.4"):
        library: Any = importlib.import_module("safetensors.torch")
    parts = {"outer": stored.outer, "buffers": stored.buffers}
    tensors = {
        f"{part}/{name}": tensor.detach().cpu().clone().contiguous()
        for part, named in parts.items()
        for name, tensor in named.items()
    }
    config = {
        "library": "fewshot_blo",
        "format": _FORMAT,
        "name": stored.name,
        "shape": list(stored.shape),
        "outputs": stored.outputs,
        "settings": stored.settings,
    }
    content = {
        WEIGHTS: library.save(tensors, metadata={"format": "pt"}),
        CONFIG: f"{json.dumps(config, indent=2)}\n".encode(),
        CARD: stored.card.encode(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in content.items():
            with atomic_write(folder / name) as file:
                file.write(data)
    except OSError as error:
        raise CheckpointError(
            f"cannot write the model to {folder}: {error}; free disk space or choose another folder"
        ) from error


def read_model(folder: Path) -> Stored:
    """Reads the files of a model, which may come from anyone: no code in them is run.

    Raises:
        CheckpointError: if a file is missing, too large, damaged or of another kind.
    """
    for name in MOST_BYTES:
        _check_size(folder / name, name)
    config = _config(folder / CONFIG)
    tensors = read_tensors(folder / WEIGHTS, "file of weights")
    parts: dict[str, dict[str, Tensor]] = {"outer": {}, "buffers": {}}
    for key, tensor in tensors.items():
        part, _, name = key.partition("/")
        if part not in parts:
            raise CheckpointError(
                f"{folder / WEIGHTS} holds '{key}': the tensors of a model are named outer/NAME "
                "and buffers/NAME; use a folder that save_pretrained wrote"
            )
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise CheckpointError(
                f"{folder / WEIGHTS}: '{key}' has entries that are not finite: use another copy"
            )
        parts[part][name] = tensor
    path = folder / CARD
    card = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return Stored(**config, outer=parts["outer"], buffers=parts["buffers"], card=card)


def _check_size(path: Path, name: str) -> None:
    if not path.is_file():
        if name == CARD:
            return
        raise CheckpointError(
            f"{path.parent} holds no {name}: name a folder that save_pretrained wrote"
        )
    check_bytes(path.stat().st_size, str(path), name)


def check_bytes(size: int, source: str, name: str) -> None:
    """Raises ``CheckpointError`` if a file is larger than any of its kind."""
    if size > MOST_BYTES[name]:
        raise CheckpointError(
            f"{source} has {size:,} bytes: a model's {name} has at most {MOST_BYTES[name]:,}; use "
            "a model that save_pretrained wrote"
        )


def _config(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{path} cannot be read ({reason}): it is damaged or not JSON; use another copy"
        ) from error
    if not isinstance(found, dict) or found.get("format") != _FORMAT:
        raise CheckpointError(
            f"{path} is not the configuration of a model of format {_FORMAT}: use a folder that "
            "save_pretrained wrote"
        )
    shape, outputs = found.get("shape"), found.get("outputs")
    wrong = {
        "name": not isinstance(found.get("name"), str),
        "settings": not isinstance(found.get("settings"), dict),
        "outputs": not _is_count(outputs),
        "shape": not isinstance(shape, list)
        or not 1 <= len(shape) <= 4
        or not all(map(_is_count, shape))
        or math.prod(shape) > _MOST_PIXELS,
    }
    for name, is_wrong in wrong.items():
        if is_wrong:
            raise CheckpointError(
                f"{path}: {name} is {str(found.get(name))[:60]}, which is not possible: use "
                "another copy, or a folder that save_pretrained wrote"
            )
    assert isinstance(shape, list)
    kept = {name: found[name] for name in ("name", "settings", "outputs")}
    return {**kept, "shape": tuple(shape)}


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 2**16
