"""Saves a classifier to one file of tensors and plain data, and loads it."""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fewshot_blo.backbones import Preprocessing
from fewshot_blo.backbones.load import LIBRARIES
from fewshot_blo.errors import CheckpointError
from fewshot_blo.finetune.album import Album
from fewshot_blo.finetune.calibration import Scale
from fewshot_blo.finetune.candidates import Candidate
from fewshot_blo.finetune.classifier import Classifier, Source
from fewshot_blo.finetune.likeness import Known, Scores
from fewshot_blo.kernel import SGD, Adam, InnerSteps
from fewshot_blo.records.tensor_files import read_tensors, write_tensors

_FORMAT = 3
_VERSION = re.compile(r"(.+)-([1-9][0-9]{0,8})")
_LATEST = 999


def save_classifier(classifier: Classifier, path: Path | str, *, thumbnails: bool = True) -> None:
    """Writes a file with the whole classifier, including the backbone's weights.

    Args:
        classifier: the classifier.
        path: path of the file, which is replaced if it exists.
        thumbnails: write small pictures and file names of the training images, if it has them.

    Raises:
        CheckpointError: if the file cannot be written.
    """
    content = {
        "format": _FORMAT,
        "source": asdict(classifier.source),
        "preprocessing": asdict(classifier.backbone.preprocess.settings),
        "backbone": classifier.backbone.body.state_dict(),
        "candidate": _plain(classifier.candidate),
        "params": dict(classifier.params),
        "class_names": list(classifier.class_names),
        "features": classifier.features,
        "labels": classifier.labels,
        "scale": asdict(classifier.scale),
        "image": list(classifier.image),
        "bits": classifier.bits,
        "known": asdict(classifier.known),
        "album": (classifier.album if thumbnails else Album()).plain(),
    }
    write_tensors(content, Path(path), "classifier")


def next_version(path: Path) -> Path:
    """The next free name: ``c-2.pt`` of ``c.pt``, ``c-3.pt`` of ``c-2.pt``, above all that exist.

    A number up to 999 behind a hyphen is a version. One above, such as a year, or with a zero in
    front, such as a month, is part of the name.
    """
    found = _VERSION.fullmatch(path.stem)
    found = found if found and int(found[2]) <= _LATEST else None
    stem = found[1] if found else path.stem
    beside = path.parent.iterdir() if path.parent.is_dir() else ()
    numbers = [1, *([int(found[2])] if found else [])]
    for other in beside:
        version = _VERSION.fullmatch(other.stem)
        if version and version[1] == stem and other.suffix == path.suffix:
            numbers.append(int(version[2]))
    return path.with_name(f"{stem}-{max(numbers) + 1}{path.suffix}")


def save_new(classifier: Classifier, path: Path, *, thumbnails: bool = True) -> Path:
    """Writes a classifier to this path, or as the next version if it exists; returns the path.

    Arguments and errors as in ``save_classifier``.
    """
    if path.exists():
        return save_version(classifier, path, thumbnails=thumbnails)
    save_classifier(classifier, path, thumbnails=thumbnails)
    return path


def save_version(classifier: Classifier, path: Path, *, thumbnails: bool = True) -> Path:
    """Writes a classifier beside an earlier one and returns the new path; nothing is overwritten.

    Args:
        classifier: the classifier.
        path: path of the earlier version.
        thumbnails: as in ``save_classifier``.

    Raises:
        CheckpointError: if the file cannot be written.
    """
    # Whole before it has its name: a kill leaves no empty version. It is swept as all such files.
    whole = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        save_classifier(classifier, whole, thumbnails=thumbnails)
        return _named(whole, path)
    except (CheckpointError, OSError) as error:
        reason = str(error).replace(str(whole), str(next_version(path)))
        raise CheckpointError(reason) from error
    finally:
        with contextlib.suppress(OSError):
            whole.unlink(missing_ok=True)


def _named(whole: Path, path: Path) -> Path:
    """Gives a file the name of the next version, which no other process has taken."""
    while True:
        target = next_version(path)
        with contextlib.suppress(FileExistsError):
            try:
                target.hardlink_to(whole)
            except PermissionError:  # A file system without hard links.
                whole.rename(target)
            return target


def load_classifier(path: Path | str, *, own: str = "") -> Classifier:
    """Reads a file that ``save_classifier`` wrote, without executing code in it.

    Args:
        path: path of the file.
        own: ``module:function`` that builds a backbone of your own. It is called only if it is
            named here, so that a file cannot choose code to run.

    Raises:
        CheckpointError: if the file is not a classifier, or needs a function other than ``own``.
        ConfigurationError: if the backbone's library is not installed.
    """
    content = _read(Path(path))
    try:
        source = Source(**content["source"])
        if not source.name.startswith(LIBRARIES) and source.name != own:
            raise CheckpointError(
                f"building the backbone of {path} would call the function {source.name}: if you "
                "trust it, name it with own"
            )
        backbone = source.load(_preprocessing(content["preprocessing"]), pretrained=False)
        backbone.body.load_state_dict(content["backbone"])
        return Classifier(
            backbone,
            source,
            _candidate(content["candidate"]),
            content["params"],
            content["class_names"],
            content["features"],
            content["labels"],
            *_judgement(content),
        )
    except CheckpointError:  # A subclass of RuntimeError, with its own message.
        raise
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{path} is not a complete classifier ({reason}): use a file that finetune wrote"
        ) from error


_RULES: dict[str, type[SGD] | type[Adam]] = {"sgd": SGD, "adam": Adam}


def _plain(candidate: Candidate) -> dict[str, Any]:
    """A candidate as plain data: inner steps as their number, name of the rule and step size."""
    plain = asdict(candidate)
    steps = plain.pop("inner")
    rule = type(candidate.inner.rule).__name__.lower()
    return {**plain, "steps": steps["steps"], "rule": rule, "step_size": steps["rule"]["step_size"]}


def _candidate(plain: Mapping[str, Any]) -> Candidate:
    rest = dict(plain)
    steps, rule, step_size = (rest.pop(name) for name in ("steps", "rule", "step_size"))
    return Candidate(**rest, inner=InnerSteps(steps, _RULES[rule](step_size)))


def _judgement(content: Mapping[str, Any]) -> tuple[Scale, torch.Size, Known, Album, int]:
    """Scale, shape, held-out scores, album and bits; older files lack the last ones."""
    image = torch.Size(content["image"])
    if content["format"] == 1:
        return Scale(content["temperature"]), image, Known(), Album(), 0
    given = dict(content["known"])
    evidence, truth = (Scores(**given.pop(name)) for name in ("evidence", "truth"))
    album = Album() if content["format"] == 2 else Album.from_plain(content["album"])
    known = Known(evidence, truth, **given)
    return Scale(**content["scale"]), image, known, album, content.get("bits", 0)


def _preprocessing(settings: Mapping[str, Any]) -> Preprocessing:
    values = {**settings, "mean": tuple(settings["mean"]), "std": tuple(settings["std"])}
    return Preprocessing(**values)


def _read(path: Path) -> Mapping[str, Any]:
    content = read_tensors(path, "classifier")
    if not isinstance(content, Mapping) or content.get("format") not in range(1, _FORMAT + 1):
        raise CheckpointError(
            f"{path} is not a classifier of format 1 to {_FORMAT}: use a file that finetune wrote"
        )
    return content
