"""Installs a wheel in a fresh environment and uses it as somebody would who has no checkout.

    python -m build && python scripts/check_wheel.py dist/*.whl

The environment gets the newest torch that the wheel allows: gigabytes where that is a build for
GPUs (``PIP_EXTRA_INDEX_URL`` names another index). In an empty folder it trains on Glyphs by the
name of a recipe, evaluates what was trained, loads a released model by name, and predicts.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path

TRAINING = (
    *("train", "runs/glyphs", "--config=glyphs", "--train.steps=1", "--train.validate_every=1"),
    *("--episodes.tasks=2", "--train.validation_tasks=5", "--test_tasks=0"),
)
COMMANDS: Sequence[Sequence[str]] = (
    ("--version",),
    ("recipes", "glyphs"),
    TRAINING,
    ("evaluate", "runs/glyphs/best.pt", "--tasks=20"),
    ("models",),
)
"""Arguments of ``fewshot-blo``."""

PREDICTION = """
import sys
import fewshot_blo
from fewshot_blo import load_pretrained
from fewshot_blo.tasks import ClassSampler, glyphs, protocols

model = load_pretrained("omniglot-5w1s-unroll")
letters = ClassSampler(glyphs.load().test, protocols.Episodic(way=5, shot=1, query=15), tasks=1)
task = letters.batch(0)
probabilities = model.predict(task.support_x[0], task.support_y[0], task.query_x[0])
assert probabilities.shape == (75, 5), probabilities.shape
accuracy = (probabilities.argmax(1).cpu() == task.query_y[0]).float().mean().item()
assert accuracy > 0.5, accuracy
print(f"{model.name}: {accuracy:.0%} of 75 printed letters; {fewshot_blo.__file__}")
"""


def use(
    python: str, folder: Path, environment: Mapping[str, str], commands: Sequence[Sequence[str]]
) -> str:
    """Runs commands of the package, and a prediction by a released model.

    Args:
        python: interpreter that finds the package.
        folder: empty folder to work in, outside of any checkout.
        environment: environment variables.
        commands: arguments of each command.

    Returns:
        The output of all commands.

    Raises:
        RuntimeError: if a command fails; its output is the message.
    """
    whole = [[python, "-m", "fewshot_blo", *words] for words in commands]
    outputs = []
    for command in [*whole, [python, "-c", PREDICTION]]:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{command} ended with {done.returncode}: {done.stderr}")
        outputs.append(done.stdout)
    return "".join(outputs)


def main() -> None:
    """Makes the environment, installs the wheel, and prints what was done with it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("wheel", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        venv.create(folder / "environment", with_pip=True)
        python = str(folder / "environment" / "bin" / "python")
        pip = [python, "-m", "pip", "install", "--quiet", str(options.wheel.resolve())]
        subprocess.run(pip, check=True)
        work = folder / "work"
        work.mkdir()
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        sys.stdout.write(use(python, work, kept, COMMANDS))


if __name__ == "__main__":
    main()
