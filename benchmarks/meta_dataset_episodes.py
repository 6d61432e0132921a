"""Ways, shots and queries of the MetaDataset protocol beside those of its published code.

``--reference`` is a checkout of https://github.com/google-research/meta-dataset, whose
``meta_dataset/data/sampling.py`` needs nothing but NumPy; TensorFlow, which its other modules
import, is not needed. Episodes are drawn from classes of 4 to 1,000 images, and from alphabets of
classes of 20. Prints a two-sample Kolmogorov-Smirnov test for each quantity:

    python benchmarks/meta_dataset_episodes.py --reference ~/meta-dataset
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import ks_2samp

from fewshot_blo.tasks.protocols import Classes, MetaDataset

QUANTITIES = ("way", "queries a class", "support images", "shots a class", "largest shot", "class")
STAND_INS = (
    "absl",
    "absl.logging",
    "six",
    "six.moves",
    "meta_dataset",
    "meta_dataset.data",
    "meta_dataset.data.dataset_spec",
    "meta_dataset.data.imagenet_specification",
)
Episode = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]
"""Classes, shots and queries."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--episodes", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    module = load(arguments.reference)
    print(f"{'classes':10} {'quantity':16} {'ours':>8} {'reference':>9} {'KS':>7} {'p':>6}")
    for name, classes, grouped in (
        ("imbalanced", imbalanced(), False),
        ("alphabets", by_group(), True),
    ):
        ours = measured(own(classes, grouped, arguments.seed), arguments.episodes)
        theirs = measured(reference(module, classes, grouped, arguments.seed), arguments.episodes)
        for quantity, one, other in zip(QUANTITIES, ours, theirs, strict=True):
            test = ks_2samp(one, other)
            print(
                f"{name:10} {quantity:16} {one.mean():8.2f} {other.mean():9.2f} "
                f"{test.statistic:7.4f} {test.pvalue:6.3f}"
            )


def imbalanced() -> Classes:
    """130 classes of 4 to 1,000 images."""
    counts = np.geomspace(4, 1000, 130).astype(np.int64)
    return Classes(counts, [f"class {number}" for number in range(len(counts))])


def by_group() -> Classes:
    """20 alphabets of 5 to 62 classes with 20 images each."""
    numbers = np.linspace(5, 62, 20).astype(int)
    names = [f"{group}/{number}" for group, n in enumerate(numbers) for number in range(n)]
    return Classes(np.full(len(names), 20), names)


def own(classes: Classes, grouped: bool, seed: int) -> Callable[[int], Episode]:
    protocol = MetaDataset(grouped=grouped)

    def draw(number: int) -> Episode:
        plan = protocol.plan(classes, np.random.default_rng((seed, number)))
        return plan.classes, plan.shots, plan.queries

    return draw


def reference(
    module: types.ModuleType, classes: Classes, grouped: bool, seed: int
) -> Callable[[int], Episode]:
    config = types.SimpleNamespace(
        num_ways=None,
        num_support=None,
        num_query=None,
        min_ways=5,
        max_ways_upper_bound=50,
        max_num_query=10,
        max_support_set_size=500,
        max_support_size_contrib_per_class=100,
        min_log_weight=np.log(0.5),
        max_log_weight=np.log(2),
        min_examples_in_class=0,
        ignore_dag_ontology=False,
        ignore_bilevel_ontology=False,
        ignore_hierarchy_probability=0.0,
        episode_description_switch_frequency=0,
    )
    sampler = module.EpisodeDescriptionSampler(
        Specification(classes),
        None,
        config,
        use_bilevel_hierarchy=grouped,
        episode_sampling_seed=seed,
    )

    def draw(_: int) -> Episode:
        chosen, shots, queries = zip(*sampler.sample_episode_description(), strict=True)
        return np.array(chosen), np.array(shots), np.array(queries)

    return draw


class Specification:
    """What the published sampler asks of a data set."""

    def __init__(self, classes: Classes) -> None:
        self.counts = classes.counts
        self.classes_per_superclass = {n: len(own) for n, own in enumerate(classes.groups)}
        self.groups = classes.groups

    def get_classes(self, split: object) -> range:
        return range(len(self.counts))

    def get_total_images_per_class(self, number: int, pool: object = None) -> int:
        return int(self.counts[number])

    def get_superclasses(self, split: object) -> range:
        return range(len(self.groups))

    def get_class_ids_from_superclass_subclass_inds(
        self, split: object, group: int, members: np.ndarray[Any, Any]
    ) -> tuple[np.ndarray[Any, Any], None]:
        return self.groups[group][members], None


def measured(draw: Callable[[int], Episode], episodes: int) -> Iterator[np.ndarray[Any, Any]]:
    """The numbers of each quantity over all episodes; one class of each for shots and classes."""
    rows = []
    for number in range(episodes):
        classes, shots, queries = draw(number)
        # The classes of an episode are not independent: a test takes one of them.
        place = number % len(classes)
        row = (len(classes), queries[0], shots.sum(), shots[place], shots.max(), classes[place])
        rows.append(row)
    return iter(np.array(rows).T)


def load(folder: Path) -> types.ModuleType:
    """``sampling.py`` of a checkout, with empty modules in place of those that need TensorFlow."""
    for name in STAND_INS:
        module = sys.modules.setdefault(name, types.ModuleType(name))
        parent, _, own_name = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], own_name, module)
    vars(sys.modules["absl.logging"])["info"] = print
    vars(sys.modules["six.moves"])["zip"] = zip
    vars(sys.modules["meta_dataset.data.dataset_spec"])["BiLevelDatasetSpecification"] = (
        Specification
    )
    path = folder / "meta_dataset" / "data" / "sampling.py"
    specification = importlib.util.spec_from_file_location("sampling", path)
    if specification is None or specification.loader is None or not path.is_file():
        sys.exit(f"{path} is missing: clone https://github.com/google-research/meta-dataset")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
