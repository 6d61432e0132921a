"""Labels pictures with the exported model beside this file.

It needs Pillow and numpy, and onnxruntime for a model NAME.onnx or torch for NAME.pt2, and nothing
else. NAME.json beside it says all that it does.

    python NAME_predict.py PICTURES...
"""

from __future__ import annotations

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

from fewshot_blo.tasks.reading.depth import eight_bit

NONE = "none of these"


def main(arguments: Sequence[str]) -> None:
    """Prints the label and the probability of each picture."""
    here = Path(__file__)
    model = Model(here.with_name(here.name.removesuffix("_predict.py") + ".json"))
    for argument in arguments:
        found = model.predict(argument)
        print(f"{argument}: {found['label']} ({100 * found['probability']:.1f} %)")


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

    def predict(self, picture: Any) -> dict[str, Any]:
        """Label, its probability, and the probabilities of all classes.

        The label is None of the classes, in these words, where the model says so.

        Args:
            picture: path or open file.
        """
        found = self.run(self.inputs(picture)[None])
        probabilities = found["probabilities"][0].tolist()
        classes = self.specification["classes"]
        best = int(np.argmax(probabilities))
        known = "known" not in found or bool(found["known"][0])
        return {
            "label": classes[best] if known else NONE,
            "most_likely": classes[best],
            "probability": probabilities[best],
            "probabilities": probabilities,
            "known": known,
            "likeness": float(found["likeness"][0]) if "likeness" in found else None,
        }

    def inputs(self, picture: Any) -> NDArray[Any]:
        """What the model takes of one picture, without the axis of the batch."""
        decoding, resizing = self.specification["decoding"], self.specification["resizing"]
        image = decode(picture, decoding["formats"], decoding["mode"])
        if resizing["inside_the_model"]:
            pixels = np.asarray(image)
            return pixels if pixels.ndim == 3 else pixels[..., None]
        size = resizing["size"]
        image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
        pixels = np.asarray(image).reshape(size, size, -1).transpose(2, 0, 1)
        return np.ascontiguousarray(pixels, np.float32) / np.float32(255)


def decode(picture: Any, formats: Sequence[str], mode: str) -> Image.Image:
    """An image of 8 bits a channel, in mode RGB or L, that is the right way up."""
    with suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    Image.init()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        readable = tuple(name for name in formats if name in Image.OPEN)
        with Image.open(picture, formats=readable) as file:
            return eight_bit(file, mode == "RGB")


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
    main(sys.argv[1:])
