"""Compares the kernel with the plain loop on one network, which gives a row of the table."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from fewshot_blo.tasks import TaskBatch
from zoo import kernel, oracle
from zoo.network import Built, Network, make, tasks
from zoo.oracle import Result

TOLERANCE = 1e-10
SINGLE = 1e-4
"""Relative tolerances in float64, and for networks that compute in float32 internally."""

_AMPLIFIED, _WORST, _WORST_SINGLE = 20, 1e-6, 1e-2
"""For a network that amplifies rounding errors, the tolerance is ``_AMPLIFIED`` times the change of
the plain loop when weights and images change in their last digits, but at most ``_WORST`` in
float64 and ``_WORST_SINGLE`` in float32."""

VERDICTS = ("agrees", "keyed", "warned", "torch cannot", "refused", "DISAGREES", "CRASH")
"""Verdicts from best to worst; that of a row is the worst of its quantities. "keyed": the module
draws random numbers, which the kernel derives from keys, and the kernel agrees with the unconverted
module in a loop with the same numbers. "warned": two calls of the unconverted module differ, so
that there is no reference, and the kernel warns of it."""
FAILURES = ("DISAGREES", "CRASH")


@dataclass(frozen=True)
class Row:
    """A row of the table: the result for one network.

    Attributes:
        family, name: family and name of the network.
        verdict: one of ``VERDICTS``.
        backend: backends that ``prepare`` chose for first order, second order and shared encoder.
        differences: relative difference of loss and gradient by quantity; a word if there is none.
        seconds: processor time of the row.
        remarks: changes to the network, messages of the kernel, and errors.
    """

    family: str
    name: str
    verdict: str
    backend: str = ""
    differences: dict[str, float | str] = field(default_factory=dict)
    seconds: float = 0.0
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Quantity:
    """A gradient, computed by the plain loop and by the kernel.

    Attributes:
        plain: the plain loop.
        ours: the kernel.
    """

    plain: Callable[[nn.Module, TaskBatch], Result]
    ours: Callable[..., tuple[Result, str]]


QUANTITIES = {
    "first": Quantity(
        partial(oracle.initialization, first_order=True),
        partial(kernel.initialization, first_order=True),
    ),
    "second": Quantity(oracle.second_order, partial(kernel.initialization, first_order=False)),
    "encoder": Quantity(oracle.shared_encoder, kernel.shared_encoder),
}


def compare(network: Network) -> Row:
    """Compares one network in float64, or in float32 if the module itself fails in float64."""
    start = time.process_time()
    row = Row(network.family, network.name, "torch cannot")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's warnings about the module itself.
        for dtype in (torch.float64, torch.float32):
            try:
                checked = _check(row, network, dtype)
                break
            except _PlainError as error:
                checked = _without_oracle(row, network, error)
    if dtype == torch.float32 and checked.differences:
        remark = f"in float32, tolerance {SINGLE:g}, because it fails in float64"
        checked = replace(checked, remarks=(*checked.remarks, remark))
    return replace(checked, seconds=time.process_time() - start)


def _without_oracle(row: Row, network: Network, reason: _PlainError) -> Row:
    """The row of a module that fails in the plain loop: the reaction of the kernel."""
    remarks = [f"the module itself: {reason}"]
    try:
        module = make(network, torch.float32).module
        kernel.initialization(module, tasks(network, torch.float32), first_order=True)
    except kernel.PROJECT_ERRORS as error:
        return replace(row, verdict="refused", remarks=(*remarks, sentence(error)))
    except Exception as error:
        remarks.append(f"the kernel: {type(error).__name__}: {sentence(error)}")
    return replace(row, remarks=tuple(remarks))


class _PlainError(Exception):
    """The module fails in the plain loop."""


def _check(row: Row, network: Network, dtype: torch.dtype) -> Row:
    batch = tasks(network, dtype)
    images = batch.support_x[0]
    try:
        unused = oracle.unused_parameters(make(network, dtype).module, images)
        built = make(network, dtype, unused)
        function = oracle.is_function(built.module, images)
    except Exception as error:
        raise _PlainError(sentence(error)) from error
    fresh = partial(make, network, dtype, unused)
    row = replace(row, verdict="agrees", remarks=built.notes)
    for name, quantity in QUANTITIES.items():
        row = _add(row, name, _quantity(quantity, fresh, batch, function))
    return row


@dataclass(frozen=True)
class _Outcome:
    verdict: str
    difference: float | str
    backend: str = ""
    remark: str = ""
    messages: tuple[str, ...] = ()


def _quantity(
    quantity: Quantity, fresh: Callable[[], Built], batch: TaskBatch, function: bool
) -> _Outcome:
    try:
        expected = quantity.plain(fresh().module, batch)
    except Exception as error:
        return _Outcome("torch cannot", "none", remark=f"plain loop: {sentence(error)}")
    messages: list[str] = []
    try:
        with kernel.said(messages):
            result, backend = quantity.ours(fresh().module, batch)
        difference = relative(result, expected)
    except kernel.PROJECT_ERRORS as error:
        return _Outcome("refused", "refused", "", sentence(error), tuple(messages))
    except Exception as error:
        remark = f"{type(error).__name__}: {sentence(error)}"
        return _Outcome("CRASH", "crash", "", remark, tuple(messages))
    if function:
        verdict, remark = _judge(difference, quantity, expected, fresh, batch)
    else:
        # A message about running task by task does not concern the results.
        warned = any("cannot be batched" not in message for message in messages)
        same = warned or _keyed(quantity, fresh, batch, result)
        verdict = "warned" if warned else "keyed" if same else "DISAGREES"
        remark = "two calls of the module itself differ"
    return _Outcome(verdict, difference, backend, remark, tuple(messages))


def _keyed(
    quantity: Quantity, fresh: Callable[[], Built], batch: TaskBatch, result: Result
) -> bool:
    """Whether the unconverted module agrees, with random numbers from the same keys."""
    other, _ = quantity.ours(fresh().module, batch, backend="reference")
    return relative(result, other) <= TOLERANCE


def _judge(
    difference: float,
    quantity: Quantity,
    expected: Result,
    fresh: Callable[[], Built],
    batch: TaskBatch,
) -> tuple[str, str]:
    """The verdict on a difference, and a remark if the tolerance was raised."""
    single = batch.support_x.dtype == torch.float32
    tolerance, remark = (SINGLE if single else TOLERANCE), ""
    if difference > tolerance and oracle.computes_in_float32(fresh().module, batch.support_x[0]):
        tolerance = SINGLE
        remark = f"computes in float32 internally: tolerance {SINGLE:g}"
    if difference > tolerance:
        moved = relative(quantity.plain(*_moved(fresh().module, batch)), expected)
        allowed = min(_AMPLIFIED * moved, _WORST_SINGLE if single else _WORST)
        if allowed > tolerance:
            tolerance = allowed
            remark = f"amplifies rounding: the plain loop itself moves by {moved:.0e}"
    return ("agrees" if difference <= tolerance else "DISAGREES"), remark


def _moved(module: nn.Module, batch: TaskBatch) -> tuple[nn.Module, TaskBatch]:
    """The module and the tasks, with weights and images changed in their last digits."""
    generator = torch.Generator().manual_seed(2)
    size = 2 * torch.finfo(batch.support_x.dtype).eps

    def move(x: Tensor) -> Tensor:
        sign = torch.randint(-1, 2, x.shape, generator=generator)
        return x * (1 + size * sign.to(x.dtype))

    with torch.no_grad():
        for p in module.parameters():
            p.copy_(move(p))
    moved = replace(batch, support_x=move(batch.support_x), query_x=move(batch.query_x))
    return module, moved


def relative(result: Result, expected: Result) -> float:
    """The larger of the relative differences of losses and gradient.

    It is infinite if names differ, or if a gradient that must be zero is not.

    Args:
        result: losses ``[T]`` and gradient by name.
        expected: reference for both.
    """
    if set(result[1]) != set(expected[1]):
        return float("inf")
    names = list(expected[1])
    pairs = [(result[0], expected[0])]
    if names:
        vectors = [_vector(r[1][n] for n in names) for r in (result, expected)]
        pairs.append((vectors[0], vectors[1]))
    differences = [0.0 if torch.equal(a, b) else float((a - b).norm() / b.norm()) for a, b in pairs]
    return max(d if d == d else float("inf") for d in differences)


def _vector(gradients: Iterable[Tensor]) -> Tensor:
    return torch.cat([(g.to_dense() if g.is_sparse else g).flatten() for g in gradients])


def _add(row: Row, name: str, outcome: _Outcome) -> Row:
    verdict = outcome.verdict
    if verdict == "torch cannot" and name != "first":
        verdict = "agrees"  # A second derivative that PyTorch lacks is a remark only.
    said = set(row.remarks) | {remark.partition(": ")[2] for remark in row.remarks}
    new = [message for message in outcome.messages if message not in said]
    if outcome.remark and outcome.remark not in said:
        new.append(f"{name}: {outcome.remark}")
    backend = outcome.backend or "-"
    return replace(
        row,
        verdict=max(row.verdict, verdict, key=VERDICTS.index),
        backend=f"{row.backend}/{backend}" if row.backend else backend,
        differences={**row.differences, name: outcome.difference},
        remarks=(*row.remarks, *new),
    )


def sentence(error: BaseException) -> str:
    """The first line of an error's message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
