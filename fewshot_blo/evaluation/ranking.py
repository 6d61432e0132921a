"""``rank``: average rank of methods over several data sets, with ties."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.evaluation.result import Evaluation, paired_difference


@dataclass(frozen=True)
class Ranking:
    """Ranks of methods, 1 for the best; tied methods share the mean of their places.

    Attributes:
        ranks: rank of each method on each data set, by method, then data set.
    """

    ranks: Mapping[str, Mapping[str, float]]

    @property
    def average(self) -> Mapping[str, float]:
        """Mean rank of each method over the data sets."""
        return {method: sum(own.values()) / len(own) for method, own in self.ranks.items()}

    def __str__(self) -> str:
        """A Markdown table, best method first."""
        average = self.average
        sets = list(next(iter(self.ranks.values())))
        lines = [f"| method | {' | '.join(sets)} | average rank |", "|---" * (len(sets) + 2) + "|"]
        for method in sorted(average, key=average.__getitem__):
            own = " | ".join(f"{self.ranks[method][name]:g}" for name in sets)
            lines.append(f"| {method} | {own} | {average[method]:.2f} |")
        return "\n".join(lines)


def rank(results: Mapping[str, Mapping[str, Evaluation]]) -> Ranking:
    """Ranks methods on each data set by their mean, in the manner of Meta-Dataset's tables.

    From the best down, a method ties with the best method left if the 95 % confidence interval of
    their difference contains 0, and methods that tie share the mean of their places. Intervals
    are of paired differences, for all methods see the same tasks. Average ranks are those of
    Triantafillou et al., 2020 (arXiv:1903.03096); the rule for ties is our own.

    Args:
        results: evaluations by method, then data set, on the same tasks of each data set.

    Raises:
        ConfigurationError: if methods were evaluated on different data sets or tasks, or a mean is
            NaN.
    """
    sets = [set(own) for own in results.values()]
    if not sets or any(own != sets[0] for own in sets):
        raise ConfigurationError(
            "methods were evaluated on different data sets, or none: a rank needs all of them on "
            "all data sets"
        )
    for method, evaluations in results.items():
        for name, own_one in evaluations.items():
            if math.isnan(own_one.mean):
                raise ConfigurationError(
                    f"the {own_one.metric.name} of {method} on {name} is NaN for "
                    f"{int(own_one.values.isnan().sum())} tasks, which has no rank: leave the "
                    "method, the data set or these tasks out"
                )
    ranks: dict[str, dict[str, float]] = {method: {} for method in results}
    for name in next(iter(results.values())):
        own = {method: evaluations[name] for method, evaluations in results.items()}
        for method, place in _places(own).items():
            ranks[method][name] = place
    return Ranking(ranks)


def _places(own: Mapping[str, Evaluation]) -> Mapping[str, float]:
    high = next(iter(own.values())).metric.higher_is_better
    left: Sequence[str] = sorted(own, key=lambda method: own[method].mean, reverse=high)
    found: dict[str, float] = {}
    while left:
        best, *others = left
        tied = [best, *(method for method in others if _tie(own[best], own[method]))]
        place = len(found) + (len(tied) + 1) / 2
        found |= dict.fromkeys(tied, place)
        left = [method for method in left if method not in tied]
    return found


def _tie(one: Evaluation, other: Evaluation) -> bool:
    difference, half = paired_difference(one, other)
    return abs(difference) <= half
