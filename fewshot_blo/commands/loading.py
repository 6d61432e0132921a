"""Data sets that options name."""

from __future__ import annotations

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.records.terminal import shown
from fewshot_blo.tasks.catalogue import DataSet
from fewshot_blo.tasks.split import TaskSplits


def load(data: DataSet) -> TaskSplits:
    """Reads the data, and prints what was passed over.

    Raises:
        ConfigurationError: if the folder of the files is not named, with the option for it.
        DataError: if files are missing or bad.
    """
    if data.lacks_files:
        raise ConfigurationError(f"{data.title} needs {data.files}: name it with --data.root")
    splits = data.load()
    for sentence in splits.notes:
        print(shown(sentence), flush=True)
    return splits
