"""What an exported model takes and returns, for readers without this package."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image

from fewshot_blo.finetune.classifier import Classifier
from fewshot_blo.finetune.export.module import Deployed
from fewshot_blo.finetune.export.standalone import NONE
from fewshot_blo.tasks.reading.formats import BY_CONTENT, suffixes


def specification(classifier: Classifier, module: Deployed, file: str) -> dict[str, Any]:
    """Every step from an image file to a label, in the order in which they happen.

    Args:
        classifier: the classifier.
        module: the classifier as a module.
        file: name of the model's file.
    """
    inside = module.resize is not None
    return {
        "file": file,
        "classes": list(classifier.class_names),
        "image": list(classifier.image),
        "backbone": classifier.source.name,
        "input": _input(classifier, inside),
        "decoding": _decoding(classifier),
        "resizing": _resizing(classifier, inside),
        "network": _network(classifier),
        "outputs": _outputs(module),
        "temperature": {
            "value": classifier.temperature,
            "rule": "the logits are divided by it inside the model, before the softmax",
        },
        "rejection": _rejection(module),
        "sets": _sets(classifier),
    }


def image_processor(classifier: Classifier) -> dict[str, Any]:
    """Settings of a Hugging Face image processor for a model that does not resize.

    It is exact on square images. Of others Hugging Face resizes the whole image to whole pixels and
    then crops it to whole pixels, which is near the classifier's crop but not equal to it. It
    neither turns images as EXIF says nor puts white under transparency.
    """
    size = classifier.size
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": classifier.image[0] == 3,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": int(Image.Resampling.LANCZOS),
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": False,  # Mean and standard deviation are in the model.
    }


def _input(classifier: Classifier, inside: bool) -> dict[str, Any]:
    channels, size = classifier.image[0], classifier.size
    if inside:
        return {
            "name": "images",
            "type": "uint8",
            "shape": ["batch", "height", "width", channels],
            "values": "0 to 255, as decoded; height and width may be any, and are those of all "
            "pictures of a batch",
        }
    return {
        "name": "images",
        "type": "float32",
        "shape": ["batch", channels, size, size],
        "values": "0 to 1: the 8-bit value divided by 255",
    }


def _decoding(classifier: Classifier) -> dict[str, Any]:
    return {
        "mode": "RGB" if classifier.image[0] == 3 else "L",
        "formats": list(dict.fromkeys([*BY_CONTENT, *sorted(suffixes().values())])),
        "bits": classifier.bits,
        "steps": [
            "of an animation, take the first frame",
            "of integers of more than 8 bits, keep the upper 8 of the bits in use: those that the "
            "file states, else the first of 8, 12 and 16 that hold all values of the image, and at "
            "least as many as bits says",
            "multiply floating-point values, which must be in [0, 1], by 255, and round",
            "turn and mirror the image as its EXIF orientation says",
            "composite transparent pixels, also those of a palette, on white (255, 255, 255)",
            "convert to the mode as Pillow's Image.convert does; embedded ICC profiles are not "
            "applied",
        ],
    }


def _resizing(classifier: Classifier, inside: bool) -> dict[str, Any]:
    return {
        "inside_the_model": inside,
        "size": classifier.size,
        "crop": "the largest centred square: side = min(height, width), from (length - side) / 2, "
        "which may be half a pixel",
        "filter": "Lanczos with 3 lobes, widened by side / size when it shrinks, as Pillow's "
        "Resampling.LANCZOS; pixels beside the square count where the filter reaches them",
        "rounding": "to 8 bits, clipped to 0 to 255, after each of the two passes, rows first; "
        "Pillow 13 takes columns first where height - size is positive and more than "
        "2 (width - size), and so does the model if it was exported with it",
        "pillow": "ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)",
    }


def _network(classifier: Classifier) -> dict[str, Any]:
    settings = classifier.backbone.preprocess.settings
    return {
        "rule": "inside the model: values / 255, views, sharpening, resizing to the network's "
        "size, minus mean, divided by std",
        "views": classifier.candidate.views,
        "sharpen": settings.sharpen,
        "size": settings.size,
        "interpolation": settings.interpolation,
        "mean": list(settings.mean),
        "std": list(settings.std),
    }


def _outputs(module: Deployed) -> dict[str, str]:
    found = {"probabilities": "float, [batch, classes], in the order of classes"}
    if module.rejection is not None:
        found["likeness"] = "float, [batch]: p-value of being of one of the classes"
        found["known"] = "bool, [batch]: whether it is high enough; false: " + NONE
    return found


def _rejection(module: Deployed) -> dict[str, Any] | None:
    if module.rejection is None:
        return None
    return {
        "label": NONE,
        "threshold": module.rejection.threshold,
        "rule": "an image is of none of the classes if its likeness is below the threshold",
    }


def _sets(classifier: Classifier) -> dict[str, Any] | None:
    """The p-value of a class by its probability: a step function, given where it rises."""
    truth = classifier.known.truth
    if not truth.images:
        return None
    values = truth.values.unique()
    p = truth.p_values(torch.cat([values.new_full((1,), -torch.inf), values]))
    return {
        "probability": values.tolist(),
        "p_value": p.tolist(),
        "rule": "the p-value of a class is entry n of p_value, where n entries of probability are "
        "at most its probability; the set of a coverage c holds the most likely class, and those "
        "whose p-value is above 1 - c. It contains the true class with about probability c if all "
        "classes are equally frequent",
    }
