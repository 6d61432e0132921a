"""``export``: writes a model for other programs, and what is needed to use it."""

from __future__ import annotations

import importlib
import inspect
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewshot_blo.errors import CheckpointError, ConfigurationError, installed_by
from fewshot_blo.finetune.classifier import Classifier
from fewshot_blo.finetune.export import standalone
from fewshot_blo.finetune.export.agreement import Agreement, compare
from fewshot_blo.finetune.export.module import Deployed, Resizing, takes_pictures, to_module
from fewshot_blo.finetune.export.pictures import write_pictures
from fewshot_blo.finetune.export.specification import image_processor, specification
from fewshot_blo.records import terminal
from fewshot_blo.records.files import atomic_write, prepare_folder
from fewshot_blo.tasks.reading import depth

TOLERANCE = 1e-3
PROCESSOR = "preprocessor_config.json"


def export(
    classifier: Classifier,
    path: Path | str,
    *,
    resizing: Resizing = "inside",
    pictures: Sequence[Path] = (),
) -> Agreement:
    """Writes a model, its specification NAME.json and a script NAME_predict.py that uses it.

    The script needs neither this package nor, for ONNX, PyTorch. A model that does not resize
    pictures also gets a ``preprocessor_config.json`` for Hugging Face's image processors. Before
    the files appear, pictures of many sizes, modes and orientations are labelled from their files
    by the script and by the classifier.

    Args:
        classifier: the classifier.
        path: file to write: NAME.onnx for ONNX, or NAME.pt2 for torch.export.
        resizing: where pictures are cropped and resized: "inside" the model, which then takes
            uint8 pictures ``[B, H, W, C]`` of any size, or "outside" of it: it then takes images
            ``[B, C, S, S]`` with values in [0, 1].
        pictures: further image files to compare on, such as the training images.

    Returns:
        How the model and the classifier agree.

    Raises:
        CheckpointError: if a probability differs by more than 1e-3; no file is then written.
        ConfigurationError: if the name has another ending, a package is not installed, the
            classifier does not take pictures, its network cannot be traced, or a file of another
            origin would be replaced.
        DataError: if a picture cannot be decoded.
    """
    writers: dict[str, Callable[[Deployed, Tensor], bytes]] = {".onnx": _onnx, ".pt2": _pt2}
    path = Path(path)
    if path.suffix not in writers:
        raise ConfigurationError(f"{path} must end in .onnx or .pt2")
    if not takes_pictures(classifier):
        raise ConfigurationError(
            f"the classifier takes arrays {list(classifier.image)}, not square pictures: use "
            "fewshot_blo.finetune.export.to_module"
        )
    module = to_module(classifier, resizing=resizing)
    files = _descriptions(classifier, module, path)
    _check_others(path, files)
    prepare_folder(path.parent)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with _quiet():
            model = writers[path.suffix](module, _example(classifier, resizing))
        files = {path.name: model, **files}
        for file, content in files.items():
            (folder / file).write_bytes(content)
        (folder / "pictures").mkdir()
        agreement = compare(
            classifier,
            folder / _script(path),
            folder / path.with_suffix(".json").name,
            [*pictures, *write_pictures(folder / "pictures")],
        )
    if not agreement.difference <= TOLERANCE:
        raise CheckpointError(
            f"the probabilities of {path.name} differ from the classifier's by "
            f"{agreement.difference:.1e} on {agreement.worst.name}, more than {TOLERANCE:g}; no "
            "file was written"
        )
    for file, content in files.items():
        with atomic_write(path.with_name(file)) as written:
            written.write(content)
    return agreement


def written(path: Path, resizing: Resizing) -> list[Path]:
    """The files that ``export`` writes for a model."""
    names = [path.name, path.with_suffix(".json").name, _script(path)]
    return [path.with_name(n) for n in (*names, *([PROCESSOR] if resizing == "outside" else []))]


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, what the exporters say about their own work is not printed."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _script(path: Path) -> str:
    return f"{path.stem}_predict.py"


def _descriptions(classifier: Classifier, module: Deployed, path: Path) -> dict[str, bytes]:
    files = {
        path.with_suffix(".json").name: _json(specification(classifier, module, path.name)),
        _script(path): _source().encode(),
    }
    if module.resize is None:
        files[PROCESSOR] = _json(image_processor(classifier))
    return files


def _source() -> str:
    """The script's source, with the source of what it imports of this package in its place."""
    lines = inspect.getsource(standalone).splitlines(keepends=True)
    for module in (terminal, depth):
        start = f"from {module.__name__} import "
        (place,) = (n for n, line in enumerate(lines) if line.startswith(start))
        own = inspect.getsource(module)
        lines[place] = own.partition("from __future__ import annotations\n")[2]
    return "".join(lines)


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def _check_others(path: Path, files: Mapping[str, bytes]) -> None:
    """Raises ``ConfigurationError`` if a file of another origin would be replaced."""
    processor = path.with_name(PROCESSOR)
    if PROCESSOR in files and processor.exists() and processor.read_bytes() != files[PROCESSOR]:
        raise ConfigurationError(
            f"{processor} is there already, for another model: export to another folder, or move it"
        )
    script, description = path.with_name(_script(path)), path.with_suffix(".json")
    title = files[script.name].splitlines()[0]
    for file, own in (
        (script, lambda content: content.startswith(title)),
        (description, lambda content: b'"file": ' in content and b'"temperature": ' in content),
    ):
        if file.exists() and not own(file.read_bytes()):
            raise ConfigurationError(
                f"{file} is there already, and no export wrote it: choose another name than "
                f"{path.name}"
            )


def _example(classifier: Classifier, resizing: Resizing) -> Tensor:
    channels, size = classifier.image[0], classifier.size
    if resizing == "inside":
        return torch.zeros(2, size + 3, size + 5, channels, dtype=torch.uint8)
    return torch.zeros(2, channels, size, size)


def _exported(module: Deployed, images: Tensor) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    axes = {0: batch}
    if module.resize is not None:
        axes |= {n: torch.export.Dim(a, min=1) for n, a in ((1, "height"), (2, "width"))}
    try:
        return torch.export.export(module, (images,), dynamic_shapes={"images": axes})
    except Exception as error:  # Whatever tracing a user's network raises.
        reason = str(error).strip().partition("\n")[0].partition(". ")[0][:160]
        raise ConfigurationError(
            f"torch.export cannot trace the network ({type(error).__name__}: {reason}): its "
            "forward must not depend on values or on the number of images; a network of a few-shot "
            "problem is rewritten for many tasks, so give its weights to the module that it was "
            "made of"
        ) from error


def _pt2(module: Deployed, images: Tensor) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.pt2"
        torch.export.save(_exported(module, images), file)
        return file.read_bytes()


def _onnx(module: Deployed, images: Tensor) -> bytes:
    with installed_by(".[onnx]"):
        importlib.import_module("onnxscript")
        importlib.import_module("onnxruntime")
    found = torch.onnx.export(
        _exported(module, images),
        input_names=["images"],
        output_names=list(module(images)),
        verbose=False,
    )
    assert found is not None
    content: bytes = found.model_proto.SerializeToString()
    return content
