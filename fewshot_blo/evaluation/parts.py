"""``merge``: the evaluation of all tasks from those of its parts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.evaluation.counts import Counts
from fewshot_blo.evaluation.result import Evaluation, Part
from fewshot_blo.kernel import InnerSteps
from fewshot_blo.problems import FewShotProblem
from fewshot_blo.records.shard import Shard
from fewshot_blo.tasks import TaskSource
from fewshot_blo.tasks.inputs import tensors_of

_SAMPLED = 64


def merge(parts: Sequence[Evaluation]) -> Evaluation:
    """The evaluation of all tasks from those of all parts, in any order.

    Accuracies and counts are those that one call of ``evaluate`` for all tasks has, to the last
    bit where chunks and threads do not change the rounding of the logits.

    Args:
        parts: evaluations with a ``shard``, one for each part.

    Raises:
        ConfigurationError: if parts are missing or given twice, or were measured under different
            protocols, or with different weights or data.
    """
    known = [part.part for part in parts]
    check_parts(known)
    shards = {part.shard.number: e for part, e in zip(known, parts, strict=True) if part}
    ordered = [shards[number] for number in sorted(shards)]
    first = ordered[0]
    for other in ordered[1:]:
        for what, value in _same(other).items():
            if value != _same(first)[what]:
                raise ConfigurationError(
                    f"parts {_shard(first)} and {_shard(other)} differ in their {what} "
                    f"({_same(first)[what]} and {value}): {_REMEDY}"
                )
    names: dict[int, str] = {}
    for part in ordered:
        names |= dict(zip(part.counts.classes.tolist(), part.class_names, strict=True))
    counts = Counts.sum([part.counts for part in ordered])
    return Evaluation(
        first.norm,
        first.episodes,
        first.steps,
        torch.cat([part.values for part in ordered]),
        [names[c] for c in counts.classes.tolist()],
        counts,
        first.precision,
        first.views,
        metric=first.metric,
        others={m: torch.cat([part.others[m] for part in ordered]) for m in first.others},
        drawn_from=first.drawn_from,
    )


_REMEDY = "evaluate all parts with one command, apart from shard"


def check_parts(parts: Sequence[Part | None]) -> None:
    """Checks that parts are all of one evaluation, each once.

    Raises:
        ConfigurationError: if they are not.
    """
    if not parts or None in parts:
        what = "an evaluation is of all tasks, no part" if parts else "there is no part"
        raise ConfigurationError(f"{what}: merge what was evaluated with shard")
    counts = sorted({part.shard.count for part in parts if part})
    if len(counts) > 1:
        raise ConfigurationError(
            f"there are parts of {counts[0]} and of {counts[1]}: merge those of one number"
        )
    numbers = [part.shard.number for part in parts if part]
    twice = sorted({n for n in numbers if numbers.count(n) > 1})
    if twice:
        raise ConfigurationError(
            f"part {twice[0]}/{counts[0]} is given {numbers.count(twice[0])} times: give each once"
        )
    missing = [f"{n}/{counts[0]}" for n in range(1, counts[0] + 1) if n not in numbers]
    if missing:
        which = ", ".join(missing[:5]) + (" and others" if len(missing) > 5 else "")
        raise ConfigurationError(
            f"{len(missing)} of {counts[0]} parts {'is' if len(missing) == 1 else 'are'} missing "
            f"({which}): evaluate with --shard {missing[0]}, then merge all"
        )


def _same(evaluation: Evaluation) -> Mapping[str, object]:
    """What all parts have in common, by what a message calls it."""
    part = evaluation.part
    assert part is not None
    return {
        "norm mode": evaluation.norm,
        "metrics": [metric.name for metric in (evaluation.metric, *evaluation.others)],
        "protocol": evaluation.protocol,
        "number of tasks": part.tasks,
        "adaptation": part.adaptation,
        "checkpoint's weights": part.weights[:12],
        "data": part.data[:12],
    }


def _shard(evaluation: Evaluation) -> Shard | None:
    return evaluation.part.shard if evaluation.part else None


def part_of(
    shard: Shard,
    tasks: int,
    problem: FewShotProblem,
    source: TaskSource,
    adaptation: InnerSteps,
) -> Part:
    """The part of an evaluation, with digests of what was evaluated on what."""
    tensors = {**problem.outer, **dict(problem.network.named_buffers())}
    weights = digest({name: p.detach() for name, p in tensors.items()})
    taken = f"{adaptation}, {source.dtype}"
    return Part(shard, tasks, taken, weights, _digest_of_data(source))


def _digest_of_data(source: TaskSource) -> str:
    """Of the first task, a sample of the examples, and the classes' names."""
    return digest({**source.between(0, 1).flat, **sampled(source)}, *source.class_names)


def sampled(source: TaskSource) -> dict[str, Tensor]:
    """Up to 64 of the examples that tasks are drawn from, spread over all; none without a pool."""
    found: dict[str, Tensor] = {}
    for number, pool in enumerate([] if source.pool is None else tensors_of(source.pool)):
        count = len(pool)
        sampled = min(_SAMPLED, count)
        places = torch.arange(sampled) * (count - 1) // max(sampled - 1, 1)
        found[f"pool {number}"] = pool[places.to(pool.device)]
    return found


def digest(tensors: Mapping[str, Tensor], *words: str) -> str:
    """SHA-256 of named tensors and of words."""
    found = hashlib.sha256(repr(words).encode())
    for name in sorted(tensors):
        tensor = tensors[name].cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
