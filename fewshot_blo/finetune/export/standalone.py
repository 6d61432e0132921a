"""Labels pictures with the exported model beside this file.

It needs Pillow and numpy, and onnxruntime for a model NAME.onnx or torch for NAME.pt2, and nothing
else. NAME.json beside it says all that it does.

    python NAME_predict.py PICTURES... [--coverage 0.9]
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fewshot_blo.records.terminal import CLOSED_PIPE, give_up_output, print_anything, shown
from fewshot_blo.tasks.reading.depth import eight_bit

NONE = "none of these"


def main(arguments: Sequence[str]) -> int:
    """Prints the label and the probability of each picture; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pictures", nargs="+")
    parser.add_argument(
        "--coverage", type=float, help="also the set of classes that contains the true one so often"
    )
    given = parser.parse_args(arguments)
    here = Path(__file__)
    model = Model(here.with_name(here.name.removesuffix("_predict.py") + ".json"))
    print_anything()
    if given.coverage is not None:
        try:
            model.check_coverage(given.coverage)
        except ValueError as error:
            parser.error(str(error))
    try:
        status = _print_labels(model, given.pictures, given.coverage)
        sys.stdout.flush()
    except BrokenPipeError:
        give_up_output()
        return CLOSED_PIPE
    return status


def _print_labels(model: Model, pictures: Sequence[str], coverage: float | None) -> int:
    status = 0
    for picture in pictures:
        try:
            found = model.predict(picture, coverage)
        except _UNREADABLE as error:
            print(shown(f"{picture}: cannot be read ({error})"), file=sys.stderr)
            status = 1
            continue
        most_likely = found["most_likely"]
        name = f"the class '{NONE}'" if most_likely == NONE else most_likely
        percent = f"{100 * found['probability']:.1f} %"
        said = f"{name} {percent}" if found["known"] else f"{NONE} (most likely {name}, {percent})"
        if coverage is not None:
            said += f"; {100 * coverage:g} % set: {', '.join(found['set'])}"
        print(shown(f"{picture}: {said}"))
    return status


class Model:
    """An exported model.

    Args:
        specification: NAME.json; the model's file is beside it.
    """

    def __init__(self, specification: str | Path) -> None:
        path = Path(specification)
        self.specification: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        load = _onnx if self.specification["file"].endswith(".onnx") else _torch
        self.run = load(path.with_name(self.specification["file"]))

    def predict(self, picture: Any, coverage: float | None = None) -> dict[str, Any]:
        """Label, its probability, the probabilities of all classes, and whether it is of a class.

        The label is "none of these" where ``known`` is False.

        Args:
            picture: path or open file.
            coverage: probability, in (0, 1), with which the classes of ``set``, most likely first,
                contain the true one; None for no such set.

        Raises:
            ValueError: if the coverage is outside (0, 1), or the model has no sets.
        """
        found = self.run(self.inputs(picture)[None])
        probabilities = found["probabilities"][0].tolist()
        classes = self.specification["classes"]
        best = int(np.argmax(probabilities))
        known = "known" not in found or bool(found["known"][0])
        result = {
            "label": classes[best] if known else NONE,
            "most_likely": classes[best],
            "probability": probabilities[best],
            "probabilities": probabilities,
            "known": known,
            "likeness": float(found["likeness"][0]) if "likeness" in found else None,
        }
        if coverage is not None:
            result["set"] = [classes[n] for n in self._inside(np.array(probabilities), coverage)]
        return result

    def check_coverage(self, coverage: float) -> None:
        """Raises a ValueError if the model has no sets of this coverage."""
        if not 0 < coverage < 1:
            raise ValueError(f"coverage is {coverage}: it must be in (0, 1)")
        if self.specification["sets"] is None:
            raise ValueError("the model has no sets, because no images were held out")

    def _inside(self, probabilities: NDArray[Any], coverage: float) -> list[int]:
        """The classes of the set, most likely first; the most likely one is always in it."""
        self.check_coverage(coverage)
        sets = self.specification["sets"]
        below = np.searchsorted(sets["probability"], probabilities, side="right")
        inside = np.array(sets["p_value"])[below] > 1 - coverage
        order = np.argsort(-probabilities, kind="stable").tolist()
        return [n for place, n in enumerate(order) if inside[n] or not place]

    def inputs(self, picture: Any) -> NDArray[Any]:
        """What the model takes of one picture, without the axis of the batch."""
        decoding, resizing = self.specification["decoding"], self.specification["resizing"]
        image = decode(picture, decoding["formats"], decoding["mode"], decoding["bits"])
        if resizing["inside_the_model"]:
            pixels = np.asarray(image)
            return pixels if pixels.ndim == 3 else pixels[..., None]
        size = resizing["size"]
        image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
        pixels = np.asarray(image).reshape(size, size, -1).transpose(2, 0, 1)
        return np.ascontiguousarray(pixels, np.float32) / np.float32(255)


def decode(picture: Any, formats: Sequence[str], mode: str, bits: int) -> Image.Image:
    """An image of 8 bits a channel, in mode RGB or L, that is the right way up."""
    with suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    Image.init()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        readable = tuple(name for name in formats if name in Image.OPEN)
        with Image.open(picture, formats=readable) as file:
            return eight_bit(file, mode == "RGB", bits)


_UNREADABLE = (
    OSError,
    SyntaxError,  # Of Pillow, about broken files.
    ValueError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)

Run = Callable[[NDArray[Any]], dict[str, NDArray[Any]]]


def _onnx(path: Path) -> Run:
    runtime: Any = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {"images": images}), strict=True))


def _torch(path: Path) -> Run:
    torch: Any = importlib.import_module("torch")
    module = torch.export.load(path).module()

    def run(images: NDArray[Any]) -> dict[str, NDArray[Any]]:
        found = module(torch.from_numpy(images.copy()))
        return {name: output.numpy() for name, output in found.items()}

    return run


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
