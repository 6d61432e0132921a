"""Where the time of one outer step goes: by layer and derivative, and by operator.

    python benchmarks/profile_step.py [--network conv4-32-84] [--tasks 4] [--steps 5]

"forward" is the time in a layer's forward passes, "gradient" in the first backward pass through
each of them, and "second derivative" in all later ones: in those through the graph that the first
one left, and in the second pass through the forward graph. Times are of the processor, or on a GPU
of its kernels, none of which are replayed from a recording here; a chunk of tasks is
differentiated after another, as in training.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import ours
import torch
from grid import METHODS, PRECISIONS, Cell
from timing import seconds
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from fewshot_blo.machine.allocator import keep_freed_memory

PHASES = ("forward", "gradient", "second derivative")
OTHER = "(loss, update rule, rest)"
_LAYER = "layer: "
_NODE = "autograd::engine::evaluate_function: "


class Label(NamedTuple):
    """Whose time it is."""

    layer: str
    phase: str


def main(arguments: Sequence[str] | None = None) -> None:
    """Profiles one step after two to warm up, and prints both tables."""
    options = _parse(arguments)
    device = torch.device(options.device)
    cell = Cell(
        network=options.network,
        method=options.method,
        adapted=options.adapted,
        tasks=options.tasks,
        steps=options.steps,
        shot=options.shot,
        precision=options.precision,
    )
    if device.type == "cpu":
        keep_freed_memory()
    batch = cell.batch(options.seed, device, torch.float32)
    weights = ours.make_weights(cell, options.seed)
    mine = ours.build(cell, weights, batch, chunk=options.chunk, graph="off")
    mine.step()
    unprofiled = seconds(mine.step, device)
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with _layers_named(mine.problem.network), profile(activities=activities) as profiler:
        seconds(mine.step, device)
    events = profiler.events()
    assert events is not None
    print(f"{cell.name} on {device}: {1e3 * unprofiled:.1f} ms a step without the profiler")
    print(f"backend {mine.problem.backend}, {mine.chunk.size} tasks at a time\n")
    print(_by_layer(events, device))
    print(_by_operator(events, device, options.operators))


@contextmanager
def _layers_named(network: nn.Module) -> Iterator[None]:
    """Within, the profiler sees which layer's forward pass is running."""
    hooks: list[Any] = []
    for name, module in network.named_modules():
        running: list[record_function] = []

        def enter(
            module: nn.Module,
            inputs: Any,
            name: str = name,
            running: list[record_function] = running,
        ) -> None:
            del module, inputs
            running.append(record_function(_LAYER + (name or "network")))
            running[-1].__enter__()

        def leave(
            module: nn.Module, inputs: Any, output: Any, running: list[record_function] = running
        ) -> None:
            del module, inputs, output
            running.pop().__exit__(None, None, None)

        hooks.append(module.register_forward_pre_hook(enter))
        hooks.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def labels(events: Iterable[Any]) -> Iterator[tuple[Any, Label]]:
    """Every event with the layer and the derivative that it belongs to.

    A node of the autograd graph carries the number that the operator which made it was given in
    its thread, so a backward pass is traced to the layer of its forward pass, and the backward of
    that backward pass as well.
    """
    found: dict[int, Label] = {}
    makers: dict[tuple[int, int], Label] = {}
    visited: set[tuple[int, int]] = set()
    for event in sorted(events, key=lambda event: event.time_range.start):
        parent = event.cpu_parent
        label = found.get(id(parent), Label(OTHER, PHASES[0]))
        if event.name.startswith(_LAYER):
            label = Label(event.name.removeprefix(_LAYER), PHASES[0])
        elif event.name.startswith(_NODE):
            node = event.fwd_thread, event.sequence_nr
            origin = makers.get(node, Label(OTHER, PHASES[0]))
            first = origin.phase == PHASES[0] and node not in visited
            label = Label(origin.layer, PHASES[1 if first else 2])
            visited.add(node)
        elif event.sequence_nr >= 0 and not (parent and parent.name.startswith(_NODE)):
            # Several operators see a number before one makes a node of it: the last of them.
            makers[event.thread, event.sequence_nr] = label
        found[id(event)] = label
        yield event, label


def _by_layer(events: Iterable[Any], device: torch.device) -> str:
    times: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(PHASES, 0.0))
    for event, label in labels(events):
        times[label.layer][label.phase] += _milliseconds(event, device)
    total = sum(sum(phases.values()) for phases in times.values())
    rows = [
        (
            layer,
            *(f"{phases[phase]:.2f}" for phase in PHASES),
            f"{100 * sum(phases.values()) / total:.1f}",
        )
        for layer, phases in times.items()
        if sum(phases.values()) > 0.0005 * total
    ]
    sums = [sum(phases[phase] for phases in times.values()) for phase in PHASES]
    rows.append(("all", *(f"{value:.2f}" for value in sums), "100.0"))
    return _table(("layer", *(f"{phase} ms" for phase in PHASES), "%"), rows)


def _by_operator(events: Iterable[Any], device: torch.device, number: int) -> str:
    times: dict[str, float] = defaultdict(float)
    calls: Counter[str] = Counter()
    for event in events:
        if not event.name.startswith(_LAYER):
            times[event.name] += _milliseconds(event, device)
            calls[event.name] += 1
    total = sum(times.values())
    rows = [
        (name, str(calls[name]), f"{value:.2f}", f"{100 * value / total:.1f}")
        for name, value in sorted(times.items(), key=lambda item: -item[1])[:number]
    ]
    return _table(("operator", "calls", "ms", "%"), rows)


def _milliseconds(event: Any, device: torch.device) -> float:
    """Time in the event itself and not in those that it contains."""
    time = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
    return float(time) / 1e3


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(v.rjust(w) for v, w in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in (header, *rows)
    ]
    return "\n".join(lines) + "\n"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default=Cell.network)
    parser.add_argument("--method", default=Cell.method, choices=METHODS)
    parser.add_argument("--adapted", default=Cell.adapted, choices=("all", "head"))
    parser.add_argument("--precision", default=Cell.precision, choices=PRECISIONS)
    for name in ("tasks", "steps", "shot"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Cell, name))
    parser.add_argument("--chunk", type=int, default=0, help="tasks at a time; 0: measured")
    parser.add_argument("--operators", type=int, default=25, help="lines of the second table")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
