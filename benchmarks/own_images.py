"""Does fine-tuning on one's own pictures keep what it promises?

    python benchmarks/own_images.py --root DIR --weights FILE --checkpoint FILE
        --protonet FILE [--draws 100] [--output FILE]

Each draw takes some test classes of a data set and a few pictures of each, selects a classifier as
``fit`` does, and compares its promise with its accuracy on pictures of these classes that it has
not seen; pictures of five other classes are strangers. Beside it, baselines of scikit-learn on the
same features of one view: logistic regression with C chosen by cross-validation, linear SVM, ridge
regression and shrunken linear discriminant analysis, all with balanced class weights where they
have them, and prototypes with and without centring. Features are embedded once and kept in
``--cache``.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZipFile

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV, RidgeClassifierCV
from sklearn.svm import LinearSVC
from torch import Tensor, nn

from fewshot_blo.backbones import Backbone, Preprocessing, load_backbone
from fewshot_blo.evaluation.evaluate import embed
from fewshot_blo.finetune.candidates import BALANCED
from fewshot_blo.finetune.classifier import Classifier, Source, fit_classifier
from fewshot_blo.finetune.cross_validation import hold_out
from fewshot_blo.finetune.images import LabelledImages
from fewshot_blo.finetune.plays import plays, questions
from fewshot_blo.finetune.selection import Selection, select
from fewshot_blo.networks import Conv4
from fewshot_blo.networks.views import Views
from fewshot_blo.records.files import atomic_write
from fewshot_blo.records.provenance import provenance
from fewshot_blo.records.tensor_files import read_tensors
from fewshot_blo.tasks import cifarfs

COUNTS = {
    "5 x 1": (1,) * 5,
    "5 x 2": (2,) * 5,
    "5 x 5": (5,) * 5,
    "5 x 10": (10,) * 5,
    "1, 30, 30, 5, 5": (1, 30, 30, 5, 5),
    "2, 20, 20": (2, 20, 20),
}
DATA = ("mobilenet-cifarfs", "conv4-cifarfs", "mobilenet-tiny-imagenet", "protonet-digits")
VIEWS: tuple[Views, ...] = ("one", "mirrored", "crops")
STRANGERS, PER_CLASS = 5, 50
COVERAGES = (0.8, 0.9, 0.95)

Features = dict[str, Tensor]
"""Features of each view, ``[classes, pictures, D]``."""


class Draw(NamedTuple):
    """Pictures of a draw: features by view, of training, new and strange pictures."""

    train: Features
    labels: Tensor
    new: Features
    truth: Tensor
    strange: Features


@dataclass(frozen=True)
class Outcome:
    """What one draw found about the selected classifier."""

    views: str
    promised: float
    true: float
    covered: bool
    width: float
    confidence: Tensor
    right: Tensor
    false_alarms: float
    found: float
    auroc: float
    claimed: tuple[float, float] | None
    sets: tuple[tuple[float, float], ...]


def main() -> None:
    """Measures every setting on every data set and prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--weights", required=True, help="MobileNetV3-small")
    parser.add_argument("--checkpoint", type=Path, required=True, help="Conv4 of a SimpleShot run")
    parser.add_argument("--protonet", type=Path, required=True, help="Conv4 of a ProtoNet run")
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--only", nargs="+", default=list(COUNTS), choices=list(COUNTS))
    parser.add_argument("--data", nargs="+", default=list(DATA), choices=DATA)
    parser.add_argument("--cache", type=Path, default=Path("runs/own_images"))
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # Of solvers that stop at their limit of steps.
    rows: list[dict[str, Any]] = []
    for name in arguments.data:
        features = cached(arguments.cache / f"{name}.pt", sources(arguments)[name])
        for setting in arguments.only:
            rows += measure(name, setting, features, arguments.draws)
            if arguments.output:
                content = {"draws": arguments.draws, "provenance": provenance(torch.device("cpu"))}
                with atomic_write(arguments.output) as file:
                    file.write(json.dumps({**content, "rows": rows}, indent=1).encode())


def sources(arguments: argparse.Namespace) -> dict[str, Callable[[], Features]]:
    """Functions that embed the pictures, by name."""
    mobile = load_backbone("torchvision:mobilenet_v3_small", weights=arguments.weights)
    small = mobile.preprocessed(size=128, interpolation="bicubic")
    loads = (
        lambda: embedded(small, cifar(arguments.root)),
        lambda: embedded(
            Backbone(trained(Conv4(channels=3), arguments.checkpoint, "encoder.")),
            cifar(arguments.root),
        ),
        lambda: embedded(mobile, tiny(arguments.root)),
        lambda: embedded(
            Backbone(nn.Sequential(Grey(), trained(Conv4(hidden=64), arguments.protonet))), digits()
        ),
    )
    return dict(zip(DATA, loads, strict=True))


def cached(path: Path, load: Callable[[], Features]) -> Features:
    """Features from the cache, or embedded and put into it."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(load(), path)
    found: Features = torch.load(path)
    return found


def trained(network: Conv4, path: Path, prefix: str = "") -> Conv4:
    """A network with the weights of a checkpoint, which has them under the prefix."""
    content = read_tensors(path, "checkpoint")
    tensors = {**content["outer"], **content["buffers"]}
    names = [name for name in network.state_dict() if not name.endswith("num_batches_tracked")]
    network.load_state_dict({name: tensors[f"{prefix}{name}"] for name in names}, strict=False)
    return network.eval()


class Grey(nn.Module):
    """The mean of the colours."""

    def forward(self, x: Tensor) -> Tensor:
        """``[B, 1, H, W]`` of ``[B, 3, H, W]``."""
        return x.mean(1, keepdim=True)


def embedded(backbone: Backbone, images: Tensor) -> Features:
    """Features of images ``[classes, pictures, 3, S, S]``."""
    flat, shape = images.flatten(0, 1), images.shape[:2]
    return {view: embed(backbone.with_views(view), flat).unflatten(0, shape) for view in VIEWS}


def cifar(root: Path) -> Tensor:
    """The first pictures of each test class of CIFAR-FS."""
    test = cifarfs.load(root / "cifarfs").test
    labels = range(len(test.class_names))
    return torch.stack([test.images[test.labels == label][:PER_CLASS] for label in labels])


def tiny(root: Path) -> Tensor:
    """The first pictures of each test class of the part of Tiny-ImageNet."""
    folder = root / "tinyimagenet"
    lines = (folder / "classes.csv").read_text().split()[1:]
    classes = [line.split(",")[0] for line in lines if line.endswith("test")]
    with ZipFile(folder / "tiny_tiered.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".JPEG"))

        def pixels(name: str) -> Tensor:
            image = Image.open(BytesIO(archive.read(name))).convert("RGB")
            return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())

        by_class = [[n for n in names if f"/{c}/" in n][:PER_CLASS] for c in classes]
        return torch.stack([torch.stack([pixels(name) for name in own]) for own in by_class])


def digits() -> Tensor:
    """The first handwritten digits of each class of scikit-learn's, as characters of Omniglot."""
    found, labels = load_digits(return_X_y=True)
    scaled = torch.from_numpy(255 * found / 16).to(torch.uint8).reshape(-1, 8, 8)

    def resized(picture: Tensor) -> Tensor:
        image = Image.fromarray(picture.numpy()).resize((28, 28))
        return torch.from_numpy(np.array(image)).expand(3, 28, 28)

    pictures = torch.stack([resized(picture) for picture in scaled])
    return torch.stack([pictures[labels == label][:PER_CLASS] for label in range(10)])


def draw(features: Features, counts: Sequence[int], seed: int) -> Draw:
    """Classes and pictures of one draw; the new pictures of all classes are equally many."""
    rng = np.random.default_rng(seed)
    classes, pictures = features["one"].shape[:2]
    chosen = rng.permutation(classes)[: len(counts) + STRANGERS]
    orders = [torch.from_numpy(rng.permutation(pictures)) for _ in chosen]
    most, own = max(counts), list(zip(chosen, orders, counts, strict=False))

    def rows(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        others = zip(chosen[len(counts) :], orders[len(counts) :], strict=True)
        return (
            torch.cat([x[c][order[:count]] for c, order, count in own]),
            torch.cat([x[c][order[most:]] for c, order, _ in own]),
            torch.cat([x[c][order[most:]] for c, order in others]),
        )

    parts = {view: rows(x) for view, x in features.items()}
    train, new, strange = ({v: part[i] for v, part in parts.items()} for i in range(3))
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    truth = torch.arange(len(counts)).repeat_interleave(pictures - most)
    return Draw(train, labels, new, truth, strange)


def chosen(draw: Draw, views: Sequence[str]) -> tuple[Classifier, Selection, str]:
    """What ``fit`` selects, on features instead of images."""
    groups = torch.arange(len(draw.labels))
    parts = plays(draw.labels, groups, repeats=4)
    asked = questions(parts, draw.labels, groups)
    tried = []
    for view in views if parts else views[:1]:
        x = draw.train[view]
        problem = BALANCED.problem(backbone(x.shape[1]), x[0][:, None, None].shape)
        tried.append(hold_out(BALANCED, problem, x, draw.labels, parts, asked))
    selection = select(tried)
    view = views[selection.chosen]
    x = draw.train[view]
    names = tuple(map(str, range(int(draw.labels.max()) + 1)))
    data = LabelledImages(x[..., None, None], draw.labels, names, ())
    scale, known = selection.best.scale, selection.known
    args = (BALANCED, backbone(x.shape[1]), Source("features"), data, x, scale, known)
    return fit_classifier(*args), selection, view


def backbone(features: int) -> Backbone:
    """Features as images of one pixel."""
    same = Preprocessing(None, (0.0,) * features, (1.0,) * features)
    return Backbone(nn.Identity(), same, pool="flatten")


def outcome(draw: Draw, views: Sequence[str]) -> Outcome:
    """Promise and truth of one draw."""
    classifier, selection, view = chosen(draw, views)
    new, strange = (part[view][..., None, None] for part in (draw.new, draw.strange))
    found, others = predictions(classifier, new), predictions(classifier, strange)
    confidence, label = found[0].max(1)
    right = label == draw.truth
    low, high = selection.interval or (0.0, 1.0)
    true = float(right.double().mean())
    sets = [selection.known.sets(found[0], coverage) for coverage in COVERAGES]
    return Outcome(
        view,
        selection.accuracy or float("nan"),
        true,
        low <= true <= high,
        high - low,
        confidence,
        right,
        float((~found[2]).double().mean()),
        float((~others[2]).double().mean()),
        auroc(found[1], others[1]),
        (selection.known.flagged, selection.known.found or 0.0)
        if selection.known.detects
        else None,
        tuple(
            (
                float(inside.gather(1, draw.truth[:, None]).double().mean()),
                float(inside.sum(1).double().mean()),
            )
            for inside in sets
        ),
    )


def predictions(classifier: Classifier, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities, evidence, and whether an image is known."""
    logits = classifier.logits(features.flatten(1)) / classifier.temperature
    evidence = logits.logsumexp(1)
    known = classifier.known.is_known(classifier.known.evidence.p_values(evidence))
    return logits.softmax(1), evidence, known


def auroc(known: Tensor, strange: Tensor) -> float:
    """Probability that a known picture has more evidence than a strange one."""
    return float((known[:, None] > strange).double().mean())


def cosines(x: Tensor, labels: Tensor, new: Tensor, *, centred: bool) -> Tensor:
    """Labels by the nearest prototype in cosine, with the mean of the class means subtracted."""
    ways = int(labels.max()) + 1

    def means(z: Tensor) -> Tensor:
        return torch.stack([z[labels == n].mean(0) for n in range(ways)])

    x, new = F.normalize(x), F.normalize(new)
    origin = means(x).mean(0) if centred else torch.zeros_like(x[0])
    return (F.normalize(new - origin) @ F.normalize(means(F.normalize(x - origin))).T).argmax(1)


def baselines(draw: Draw) -> dict[str, float]:
    """Accuracy of the baselines."""
    x, new, labels = draw.train["one"], draw.new["one"], draw.labels
    unit, unit_new = (F.normalize(z).double().numpy() for z in (x, new))
    y = labels.numpy()
    least = int(torch.bincount(labels).min())
    if least < 2:
        logistic: Any = LogisticRegression(C=10.0, class_weight="balanced", max_iter=1000)
    else:
        logistic = LogisticRegressionCV(
            Cs=[1.0, 10.0, 100.0],
            cv=min(least, 4),
            class_weight="balanced",
            scoring="neg_log_loss",
            max_iter=300,
        )
    models = {
        "logistic regression, balanced": logistic,
        "linear SVM, balanced": LinearSVC(C=1.0, class_weight="balanced"),
        "ridge, balanced": RidgeClassifierCV([0.03, 0.1, 0.3, 1.0, 3.0], class_weight="balanced"),
    }
    if len(y) > len(set(y)):
        models["shrunken LDA"] = LinearDiscriminantAnalysis(
            solver="lsqr", shrinkage="auto", priors=np.full(len(set(y)), 1 / len(set(y)))
        )
    found = {
        name: torch.from_numpy(model.fit(unit, y).predict(unit_new))
        for name, model in models.items()
    }
    found["prototypes"] = cosines(x, labels, new, centred=False)
    found["centred prototypes"] = cosines(x, labels, new, centred=True)
    return {name: float((p == draw.truth).double().mean()) for name, p in found.items()}


def calibration_error(outcomes: Sequence[Outcome]) -> float:
    """Expected calibration error over all draws, in ten bins of equal width."""
    confidence = torch.cat([o.confidence for o in outcomes])
    right = torch.cat([o.right for o in outcomes]).float()
    bins = (confidence * 10).long().clamp(max=9)
    parts = [bins == number for number in range(10)]
    return sum(
        float(p.float().mean()) * abs(float(confidence[p].mean() - right[p].mean()))
        for p in parts
        if p.any()
    )


def measure(name: str, setting: str, features: Features, draws: int) -> list[dict[str, Any]]:
    """Rows of one setting: the selected classifier with all views and with one, and baselines."""
    drawn = [draw(features, COUNTS[setting], seed) for seed in range(draws)]
    base = [baselines(d) for d in drawn]
    rows = []
    for method, views in (("selected, views too", VIEWS), ("selected, one view", VIEWS[:1])):
        outcomes = [outcome(d, views) for d in drawn]
        true = np.array([o.true for o in outcomes])
        row = {"data": name, "setting": setting, "method": method, **summary(outcomes)}
        for other in base[0]:
            gain = true - np.array([b[other] for b in base])
            row[f"above {other}"] = (gain.mean(), 1.96 * gain.std(ddof=1) / len(gain) ** 0.5)
        rows.append(row)
        print(line(row), flush=True)
    for other in base[0]:
        accuracy = float(np.mean([b[other] for b in base]))
        rows.append({"data": name, "setting": setting, "method": other, "true": accuracy})
    return rows


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Means over the draws."""
    true = np.array([o.true for o in outcomes])
    promised = np.array([o.promised for o in outcomes])
    claimed = [o.claimed for o in outcomes if o.claimed is not None]
    return {
        "true": true.mean(),
        "promised": promised.mean(),
        "mean |promised - true|": np.abs(promised - true).mean(),
        "coverage": np.mean([o.covered for o in outcomes]),
        "width of the interval": np.mean([o.width for o in outcomes]),
        "calibration error": calibration_error(outcomes),
        "AUROC of strangers": np.mean([o.auroc for o in outcomes]),
        "draws that detect strangers": len(claimed) / len(outcomes),
        "false alarms": np.mean([o.false_alarms for o in outcomes if o.claimed] or [0.0]),
        "strangers found": np.mean([o.found for o in outcomes if o.claimed] or [0.0]),
        "claimed false alarms and strangers found": np.mean(claimed or [(0.0, 0.0)], 0).tolist(),
        **sets_of(outcomes),
        "views": {view: sum(o.views == view for o in outcomes) for view in VIEWS},
    }


def sets_of(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Coverage and number of classes of the prediction sets, by the coverage that was asked for."""
    found = np.mean([o.sets for o in outcomes], 0).tolist()
    pairs = zip(COVERAGES, found, strict=True)
    return {f"coverage and size of {100 * asked:.0f} % sets": own for asked, own in pairs}


def line(row: dict[str, Any]) -> str:
    """A row for a person."""
    shown = [f"{row['data']:24} {row['setting']:16} {row['method']:20}"]
    for key, value in row.items():
        if isinstance(value, float):
            shown.append(f"{key} {100 * value:.1f}")
        elif isinstance(value, tuple):
            shown.append(f"{key} {100 * value[0]:+.1f} ± {100 * value[1]:.1f}")
        elif isinstance(value, list | dict):
            shown.append(f"{key} {value}")
    return " | ".join(shown)


if __name__ == "__main__":
    main()
