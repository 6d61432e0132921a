"""``fewshot-blo finetune``."""

from __future__ import annotations

import platform
import shlex
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import torch

from fewshot_blo import __version__
from fewshot_blo.backbones import Adapts, Views
from fewshot_blo.backbones.backbone import Pool
from fewshot_blo.commands.options import Options
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.experiments.sharing import check_jobs
from fewshot_blo.finetune import LabelledImages, Source, fit
from fewshot_blo.finetune.files import save_new
from fewshot_blo.finetune.labelled_folder import decode_labelled
from fewshot_blo.finetune.report import Origin, write_report
from fewshot_blo.finetune.selection import Selection
from fewshot_blo.records.checked import checked
from fewshot_blo.records.locks import writing
from fewshot_blo.records.ranges import AtLeast, AtMost, Counting, Positive
from fewshot_blo.records.terminal import shown
from fewshot_blo.tasks.reading.layouts import labelled_files


@checked
@dataclass(frozen=True)
class FineTuneRequest:
    """What to fine-tune on what.

    Attributes:
        data: folder with one subfolder of images a class, or with such folders in train and in val
            or test, or with a CSV file of the columns file and label, or that file.
        pattern: where names of files say the class, as in {label}_* or {label}_{number}.jpg.
        backbone: torchvision:NAME, timm:NAME, hf:NAME or module:function.
        weights: file of weights to use instead of the library's own.
        size: height and width of the images in pixels; 0 for that of the network's training.
        layer: name of a layer whose output to take instead of the network's last features.
        pool: pooling of maps or tokens; by default average, or that of a Backbone of your own.
        adapts: parts of the network that adapt; auto tries several and lets held-out images choose.
        views: views of each image; one, mirrored (two), scales (three), shifts (nine), crops (ten),
            mirrored_shifts; auto lets held-out images choose.
        minutes: time to choose the way to fine-tune in; ways that would not fit are left out, and
            named; no limit by default.
        jobs: processes of this machine that try ways to fine-tune beside each other; its threads
            are divided among them.
        skip_unreadable: leave out images that cannot be decoded.
        thumbnails: keep small pictures and file names of the images in the classifier, for people
            who look at its answers; false keeps neither.
        output: folder of the classifier and the report; where it has some, they are kept, and the
            new ones are classifier-2.pt and report-2.html.
    """

    data: str = ""
    pattern: str = ""
    backbone: str = "torchvision:mobilenet_v3_small"
    weights: str = ""
    size: Annotated[int, AtLeast(0), AtMost(8192)] = 0
    layer: str = ""
    pool: Pool | None = None
    adapts: Adapts | Literal["auto"] = "auto"
    views: Views | Literal["auto"] = "auto"
    minutes: Positive | None = None
    jobs: Counting = 1
    skip_unreadable: bool = False
    thumbnails: bool = True
    output: Path = Path("runs/finetune")

    def __post_init__(self) -> None:
        if not self.data:
            raise ConfigurationError("there are no images: name the folder of them")
        check_jobs(self.jobs)


_SHOWN = 20
"""Largest number of images that are left out with their own lines."""

OPTIONS = Options((FineTuneRequest,), positional="data")


def run(request: FineTuneRequest) -> int:
    """Runs it; returns the exit status."""
    with writing(request.output):
        return _run(request)


def _run(request: FineTuneRequest) -> int:
    start = time.perf_counter()
    files = labelled_files(Path(request.data), pattern=request.pattern)  # Before a download.
    source = Source(request.backbone, request.layer, request.pool)
    backbone = source.load(weights=request.weights or None, size=request.size or None)
    data = decode_labelled(files, backbone.size, skip_unreadable=request.skip_unreadable)
    for sentence in (*data.notes, *data.left_out[:_SHOWN]):
        print(shown(sentence))
    if len(data.left_out) > _SHOWN:
        print(f"{len(data.left_out) - _SHOWN} more images are left out for reasons like these")
    counts = ", ".join(
        f"{shown(name)} {count}"
        for name, count in zip(data.class_names, data.counts.tolist(), strict=True)
    )
    print(f"{len(data.labels)} images of {len(data.class_names)} classes ({counts})", flush=True)
    classifier, selection = fit(
        data,
        backbone,
        source,
        adapts=request.adapts,
        views=request.views,
        minutes=request.minutes,
        jobs=request.jobs,
    )
    try:
        file = save_new(classifier, request.output / "classifier.pt", thumbnails=request.thumbnails)
    finally:
        # Only now: whoever reads the lines may close the pipe. Also if the disk is full.
        _say(selection, data)
    report = file.with_name(f"report{file.stem.removeprefix('classifier')}.html")
    write_report(report, data, classifier, selection, _origin(request, file))
    seconds = time.perf_counter() - start
    kept = "" if file.stem == "classifier" else "; what was in this folder is unchanged"
    name = shown(file)
    print(f"{name} and {shown(report)} written after {seconds:.0f} s{kept}")
    word = shown(shlex.quote(str(file)))
    print(
        f"next: fewshot-blo predict {word} IMAGES..., fewshot-blo serve {word}, or fewshot-blo "
        f"export {word} model.onnx"
    )
    return 0


def _say(selection: Selection, data: LabelledImages) -> None:
    """What was selected, and what to expect of it."""
    print(f"chosen: {selection.reason}")
    print(selection.describe())
    for sentence in (
        selection.promise.unmeasured(data.class_names),
        selection.known.describe(),
    ):
        if sentence:
            print(shown(sentence))


def _origin(request: FineTuneRequest, file: Path) -> Origin:
    """What the report says about where the classifier comes from."""
    changed = [
        f"--{field.name}={getattr(request, field.name)}"
        for field in fields(request)
        if getattr(request, field.name) != field.default and field.name != "data"
    ]
    data = f"--data={request.data}" if request.data.startswith("-") else request.data
    versions = (
        f"fewshot_blo {__version__}, PyTorch {torch.__version__}, Python "
        f"{platform.python_version()}"
    )
    command = ("fewshot-blo", "finetune", data, *changed)
    return Origin(
        str(Path(request.data).resolve()), file.resolve(), command, request.weights, versions
    )
