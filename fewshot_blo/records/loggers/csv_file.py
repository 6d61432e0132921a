"""``CSV``: the records of a run as a table of comma-separated values."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.records.checked import checked
from fewshot_blo.records.files import atomic_write
from fewshot_blo.records.loggers.logger import LoggedRun, Record


@checked
@dataclass
class CSV:
    """A file of comma-separated values in the run's folder, with one row for each record.

    Columns are the names of the values, ``step`` first; a field is empty where a record has no such
    value. When a record has a new name, the file is replaced by one with this column as the last.
    A resumed run begins with the rows up to its step.

    Attributes:
        file: name of the file.

    Raises:
        ConfigurationError: if ``file`` is not the name of a file.
    """

    file: str = "log.csv"

    def __post_init__(self) -> None:
        name = PurePath(self.file).name
        if name != self.file or name in ("", "..") or "\0" in name:
            raise ConfigurationError(
                f"file is '{self.file}': it must be the name of a file in the run's folder, such "
                "as log.csv"
            )

    def start(self, run: LoggedRun) -> None:
        """Writes the rows of earlier attempts."""
        self._path = run.folder / self.file
        self._rows = [dict(record) for record in run.records]
        self._columns = list(dict.fromkeys(["step", *(n for row in self._rows for n in row)]))
        self._write_all()

    def write(self, record: Record) -> None:
        """Appends a row.

        Raises:
            OSError: if it cannot be written.
        """
        self._rows.append(dict(record))
        new = [name for name in record if name not in self._columns]
        if new or not self._path.exists():
            self._columns += new
            self._write_all()
            return
        with self._path.open("ab") as file:
            file.write(self._lines([record]))

    def close(self) -> None:
        """Nothing is held open."""

    def _write_all(self) -> None:
        heading: dict[str, Any] = {name: name for name in self._columns}
        with atomic_write(self._path) as file:
            file.write(self._lines([heading, *self._rows]))

    def _lines(self, rows: list[Any]) -> bytes:
        text = io.StringIO(newline="")
        csv.DictWriter(text, self._columns, lineterminator="\n").writerows(rows)
        return text.getvalue().encode()
