"""``fewshot-blo tune``."""

from __future__ import annotations

from fewshot_blo.commands.options import Options
from fewshot_blo.experiments.tuning.request import TuneRequest
from fewshot_blo.experiments.tuning.tune import run_search

OPTIONS = Options((TuneRequest,), positional="recipe")


def run(request: TuneRequest) -> int:
    """Runs it; returns the exit status."""
    return 130 if run_search(request, progress=True).interrupted else 0
