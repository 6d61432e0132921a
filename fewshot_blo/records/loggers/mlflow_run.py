"""``MLflow``: the records of a run in MLflow."""

from __future__ import annotations

import importlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewshot_blo.records.checked import checked
from fewshot_blo.records.files import atomic_write
from fewshot_blo.records.loggers.logger import LoggedRun, Record, check_installed, flat, numbers

RUN = "mlflow_run.txt"
"""File in the run's folder with the run's id."""

_MOST_PARAMETERS, _LONGEST = 100, 500
"""That MLflow takes at a time, and characters of a value that all of its stores take."""


@checked
@dataclass
class MLflow:
    """Writes numbers as metrics and settings as parameters to MLflow, whose extra is ``mlflow``.

    A resumed run goes on in the same run there, whose id is in ``mlflow_run.txt`` of the run's
    folder; of each metric, only steps after its last one are written.

    Attributes:
        uri: address of the store, such as http://host:5000; empty for that of the environment
            variable MLFLOW_TRACKING_URI, else for ``mlflow.db`` in the run's folder.
        experiment: name of the experiment, which is made if it is missing.
        name: name of the run; empty for that of its folder.

    Raises:
        ConfigurationError: if mlflow is not installed.
    """

    uri: str = ""
    experiment: str = "fewshot_blo"
    name: str = ""

    def __post_init__(self) -> None:
        check_installed("MLflow", "mlflow")

    def start(self, run: LoggedRun) -> None:
        """Begins the run there or goes on with it, and writes what it lacks of earlier records."""
        mlflow: Any = importlib.import_module("mlflow")
        environment: Any = importlib.import_module("mlflow.environment_variables")
        own = f"sqlite:///{run.folder.resolve() / 'mlflow.db'}"
        uri = self.uri or environment.MLFLOW_TRACKING_URI.get() or own
        self._client: Any = mlflow.MlflowClient(tracking_uri=uri)
        self._metric: Any = mlflow.entities.Metric
        self._id = self._known(run.folder / RUN) if run.step else ""
        self._last: dict[str, int] = {}
        if self._id:
            self._client.set_terminated(self._id, "RUNNING")
            for name in self._client.get_run(self._id).data.metrics:
                history = self._client.get_metric_history(self._id, name)
                self._last[name] = max(metric.step for metric in history)
        else:
            self._begin(run, artifacts=uri == own)
        for record in run.records:
            self.write(record)

    def _known(self, path: Path) -> str:
        """The id of the run that the store has; empty for none."""
        if not path.is_file():
            return ""
        name = path.read_text(encoding="utf-8").strip()
        experiment = self._client.get_experiment_by_name(self.experiment)
        if experiment is None:
            return ""
        known = self._client.search_runs(
            [experiment.experiment_id], f"attributes.run_id = '{name}'" if name.isalnum() else "", 1
        )
        return name if any(run.info.run_id == name for run in known) else ""

    def _begin(self, run: LoggedRun, *, artifacts: bool) -> None:
        found = self._client.get_experiment_by_name(self.experiment)
        place = (run.folder.resolve() / "mlflow_artifacts").as_uri() if artifacts else None
        made = (
            found.experiment_id
            if found
            else self._client.create_experiment(self.experiment, artifact_location=place)
        )
        name = self.name or run.folder.resolve().name
        self._id = self._client.create_run(made, run_name=name).info.run_id
        for name, value in flat(run.settings).items():
            self._client.log_param(self._id, name, str(value)[:_LONGEST])
        with atomic_write(run.folder / RUN) as file:
            file.write(self._id.encode())

    def write(self, record: Record) -> None:
        """Writes the numbers of a record, unless the run has them."""
        step, now = record["step"], int(time.time() * 1000)
        new = {n: x for n, x in numbers(record).items() if self._last.get(n, -1) < step}
        if new:
            metrics = [self._metric(name, value, now, step) for name, value in new.items()]
            self._client.log_batch(self._id, metrics=metrics)
            self._last.update((name, step) for name in new)

    def close(self) -> None:
        """Marks the run as finished."""
        self._client.set_terminated(self._id)
