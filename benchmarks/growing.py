"""Does a classifier that grows warn of wrong pictures, and do corrected pictures stay right?

    python benchmarks/growing.py --root DIR --weights FILE [--draws 30]

Each draw takes 3 or 8 test classes of Tiny-ImageNet with 5 or 20 pictures each. ``add_class`` gets
sets of pictures of a new class, of one of the classes under a new name, and of five other classes;
the table has the share of sets that are warned of. ``add_images`` then gets pictures that are
predicted wrongly, one at a time.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import torch
from own_images import cached, chosen, draw, tiny
from torch import Tensor

from fewshot_blo.backbones import load_backbone
from fewshot_blo.evaluation.evaluate import embed
from fewshot_blo.finetune.classifier import Classifier
from fewshot_blo.finetune.growing import Growth, add_class, add_images

CLASSES, PICTURES, SETS = (3, 8), (5, 20), (1, 3, 8)
CORRECTED = 6


def main() -> None:
    """Prints a table of warnings, and the corrected pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--weights", required=True, help="MobileNetV3-small")
    parser.add_argument("--draws", type=int, default=30)
    parser.add_argument("--cache", type=Path, default=Path("runs/growing.pt"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    def load() -> dict[str, Tensor]:
        images = tiny(arguments.root)
        network = load_backbone("torchvision:mobilenet_v3_small", weights=arguments.weights)
        return {"one": embed(network, images.flatten(0, 1)).unflatten(0, images.shape[:2])}

    features = cached(arguments.cache, load)
    warned: Counter[tuple[int, str, str]] = Counter()
    corrected: Counter[str] = Counter()
    for seed in range(arguments.draws):
        for classes in CLASSES:
            for pictures in PICTURES:
                one_draw(features, (pictures,) * classes, seed, warned, corrected)
    total = arguments.draws * len(CLASSES) * len(PICTURES)
    print("| pictures | of | known class | many classes |\n|---|---|---|---|")
    for size in SETS:
        for kind in ("a new class", "a known class", "five classes"):
            shares = [100 * warned[size, kind, sign] / total for sign in ("known", "many")]
            print(f"| {size} | {kind} | {shares[0]:.0f} | {shares[1]:.0f} |")
    print(dict(corrected))


def one_draw(
    features: dict[str, Tensor],
    counts: tuple[int, ...],
    seed: int,
    warned: Counter[tuple[int, str, str]],
    corrected: Counter[str],
) -> None:
    """Counts the warnings and the corrected pictures of one draw."""
    drawn = draw(features, counts, seed)
    classifier, _, _ = chosen(drawn, ("one",))
    new, strange = drawn.new["one"], drawn.strange["one"]
    apart = len(new) // len(counts)
    for size in SETS:
        mixed = torch.cat([strange[place::apart] for place in range(2)])
        sets = {"a new class": strange, "a known class": new, "five classes": mixed}
        for kind, pictures in sets.items():
            growth = add_class(classifier, "new", as_images(pictures[:size]))
            warned[size, kind, "known"] += said(growth, "as like its images")
            warned[size, kind, "many"] += said(growth, "hardly more like each other")
    predicted = classifier.judge(new).probabilities.argmax(1)
    wrong = (predicted != drawn.truth).nonzero().flatten()
    order = torch.randperm(len(wrong), generator=torch.Generator().manual_seed(seed))
    for row in wrong[order][:CORRECTED].tolist():
        corrected.update(correction(classifier, new[row : row + 1], int(drawn.truth[row])))


def correction(classifier: Classifier, picture: Tensor, label: int) -> list[str]:
    """What is true of a corrected picture."""
    growth = add_images(classifier, classifier.class_names[label], as_images(picture))
    right = int(growth.classifier.judge(picture).probabilities.argmax()) == label
    once = len(growth.classifier.labels) == len(classifier.labels) + 1
    return ["corrected", *["right"] * right, *["counted once"] * once]


def as_images(features: Tensor) -> Tensor:
    """Features as images of one pixel."""
    return features[..., None, None]


def said(growth: Growth, words: str) -> bool:
    """Whether a note has these words."""
    return any(words in note for note in growth.notes)


if __name__ == "__main__":
    main()
