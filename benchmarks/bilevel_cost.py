"""Time and peak memory of a hypergradient against inner steps and outer variables.

    python benchmarks/bilevel_cost.py [--output FILE] [--device cuda]
    python benchmarks/bilevel_cost.py --redraw --output FILE

The outer variables are pixels of training images, as in poisoning and distillation; the inner
problem is softmax regression on them, ``G = CE(v; u) + |v|² / 2000``, and F the cross-entropy of
1000 other images of noise. Slopes are of the logarithms, by least squares: 1 for what grows in
proportion, 0 for what stays.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot_blo import SGD, ConjugateGradient, Implicit, Penalty, PlainProblem, Unroll
from fewshot_blo.hypergrad import Strategy
from fewshot_blo.kernel import InnerSteps
from fewshot_blo.machine.allocator import keep_freed_memory
from fewshot_blo.machine.memory import peak_bytes
from fewshot_blo.records.curves import Curve, Panel, curve_figure
from fewshot_blo.records.figure import save_figure
from fewshot_blo.records.files import atomic_write
from fewshot_blo.records.provenance import provenance

SIDE, CLASSES = 784, 10
STEPS = (1, 4, 16, 64, 256)
VARIABLES = (10**2, 10**3, 10**4, 10**5, 10**6, 10**7)
STRATEGIES: dict[str, Callable[[int], Strategy]] = {
    "penalty": lambda steps: Penalty(InnerSteps(steps, SGD(1e-3)), rho=1.0),
    "unrolling, graphs kept": lambda steps: Unroll(InnerSteps(steps, SGD(1e-2)), recompute=False),
    "unrolling, recomputed": lambda steps: Unroll(InnerSteps(steps, SGD(1e-2)), recompute=True),
    "implicit, 10 conjugate gradients": lambda steps: Implicit(
        InnerSteps(steps, SGD(1e-2)), ConjugateGradient(10)
    ),
}


def make_problem(variables: int, device: torch.device) -> PlainProblem:
    """So many pixels are learned, of one image at least."""
    generator = torch.Generator().manual_seed(0)
    rows = -(-variables // SIDE)
    base = torch.rand(rows * SIDE, generator=generator)
    labels = torch.randint(CLASSES, (rows,), generator=generator).to(device)
    x, y = torch.rand(1000, SIDE, generator=generator).to(device), torch.arange(1000) % CLASSES
    y, rest = y.to(device), base[variables:].to(device)

    def inner_loss(v: Mapping[str, Tensor], u: Mapping[str, Tensor]) -> Tensor:
        images = torch.cat([u["pixels"], rest]).reshape(rows, SIDE)
        return F.cross_entropy(images @ v["w"], labels) + 5e-4 * v["w"].square().sum()

    def outer_loss(v: Mapping[str, Tensor], u: Mapping[str, Tensor]) -> Tensor:
        return F.cross_entropy(x @ v["w"], y)

    outer = {"pixels": base[:variables].to(device).clone()}
    return PlainProblem(
        outer, {"w": torch.zeros(SIDE, CLASSES, device=device)}, inner_loss, outer_loss
    )


def measure(
    strategy: Strategy, variables: int, device: torch.device, repeats: int
) -> dict[str, float]:
    """Median seconds and peak bytes of one hypergradient."""
    bilevel = make_problem(variables, device).at(0)

    def once() -> None:
        strategy.hypergradient(bilevel, strategy.init())
        if device.type == "cuda":
            torch.cuda.synchronize()

    peak = peak_bytes(once)  # It also warms up.
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        once()
        seconds.append(time.perf_counter() - start)
    return {"seconds": median(seconds), "bytes": float(peak)}


def slope(xs: list[float], ys: list[float]) -> float:
    """Of the logarithms, over the upper half of the range: fixed costs hide it below."""
    upper = slice(-max(2, len(xs) // 2), None)
    return float(np.polyfit(np.log(xs[upper]), np.log(ys[upper]), 1)[0])


def draw(axis: str, rows: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Draws seconds and MiB of tensors against one axis."""
    measured = {"seconds": ("time (s)", "Time", 1), "bytes": ("peak memory (MiB)", "Memory", 2**20)}
    sides = [
        Panel(
            {
                name: Curve([p[axis] for p in points], [p[key] / unit for p in points])
                for name, points in rows.items()
            },
            f"{axis} (count)",
            label,
            title,
            xscale="log",
            yscale="log",
        )
        for key, (label, title, unit) in measured.items()
    ]
    save_figure(curve_figure(f"Cost of one hypergradient against {axis}", sides), path)


def draw_all(content: Mapping[str, Any], output: Path) -> None:
    """Draws what was measured against each axis, beside the file of the output."""
    for axis, rows in content["axes"].items():
        draw(axis, rows, output.with_name(f"{output.stem}-{axis.split()[0]}.png"))


def main() -> None:
    """Measures both axes, prints slopes, writes JSON and two pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS))
    parser.add_argument("--variables", type=int, nargs="+", default=list(VARIABLES))
    parser.add_argument("--output", type=Path, default=Path("runs/bilevel-cost.json"))
    parser.add_argument("--redraw", action="store_true", help="only draw what FILE holds")
    arguments = parser.parse_args()
    if arguments.redraw:
        draw_all(json.loads(arguments.output.read_text(encoding="utf-8")), arguments.output)
        return

    keep_freed_memory()
    device = torch.device(arguments.device)
    axes = {
        "inner steps": [(steps, 10**4) for steps in arguments.steps],
        "outer variables": [(10, variables) for variables in arguments.variables],
    }
    content: dict[str, Any] = {"provenance": provenance(device), "axes": {}, "slopes": {}}
    for axis, points in axes.items():
        rows: dict[str, list[dict[str, float]]] = {}
        for name, make in STRATEGIES.items():
            for steps, variables in points:
                found = measure(make(steps), variables, device, arguments.repeats)
                place = float(steps if axis == "inner steps" else variables)
                rows.setdefault(name, []).append({axis: place, **found})
            xs = [p[axis] for p in rows[name]]
            slopes = {k: slope(xs, [p[k] for p in rows[name]]) for k in ("seconds", "bytes")}
            content["slopes"].setdefault(axis, {})[name] = slopes
            print(
                f"{name:34} against {axis}: time ^ {slopes['seconds']:.2f}, "
                f"memory ^ {slopes['bytes']:.2f}",
                flush=True,
            )
        content["axes"][axis] = rows
        draw_all(content, arguments.output)
        with atomic_write(arguments.output) as file:
            file.write(json.dumps(content, indent=1).encode())


if __name__ == "__main__":
    main()
