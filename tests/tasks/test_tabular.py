from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fewshot_blo.tasks import DataError
from fewshot_blo.tasks.tabular import class_table, group_table

RNG = np.random.default_rng(0)
SCHOOLS = [f"school {n}" for n in range(10) for _ in range(4 + n % 3)]
M = len(SCHOOLS)
TABLE: dict[str, Any] = {
    "school": SCHOOLS,
    "age": RNG.integers(6, 18, M),
    "town": RNG.choice(["north", "south", "west"], M),
    "score": RNG.normal(50, 10, M),
}


def by_hand(train: set[str], names: list[str]) -> tuple[Any, Any]:
    """Inputs and targets of the rows of schools, in the order of names, with plain loops."""
    ages = [age for age, school in zip(TABLE["age"], SCHOOLS, strict=True) if school in train]
    mean, scale = np.mean(ages), np.std(ages)
    inputs, targets = [], []
    for name in names:
        for row in range(M):
            if SCHOOLS[row] == name:
                towns = [float(TABLE["town"][row] == town) for town in ("north", "south", "west")]
                inputs.append([(TABLE["age"][row] - mean) / scale, *towns])
                targets.append([TABLE["score"][row]])
    return torch.tensor(inputs, dtype=torch.float64), torch.tensor(targets, dtype=torch.float64)


def tensor_of(inputs: Any) -> Tensor:
    assert isinstance(inputs, Tensor)
    return inputs


def written(path: Path, separator: str, table: dict[str, Any] = TABLE) -> Path:
    rows = [list(table), *zip(*table.values(), strict=True)]
    text = "\n".join(separator.join(map(str, row)) for row in rows)
    path.write_text("\ufeff" + text + "\n", encoding="utf-8")
    return path


class Frame:
    """What is used of a DataFrame."""

    def __init__(self, table: dict[str, Any]) -> None:
        self.columns = np.array(list(table), dtype=object)
        self.table = table

    def __getitem__(self, name: str) -> Any:
        return np.array(list(self.table[name]), dtype=object)


@pytest.mark.parametrize("form", ["mapping", "frame", "array", ",", ";", "\t"])
def test_groups_equal_plain_loops(form: str, tmp_path: Path) -> None:
    table: Any = TABLE
    if form == "frame":
        table = Frame(TABLE)
    elif form == "array":
        kinds = [("school", "U12"), ("age", "i4"), ("town", "U5"), ("score", "f8")]
        table = np.array(list(zip(*TABLE.values(), strict=True)), dtype=kinds)
    elif form != "mapping":
        table = written(tmp_path / "table.csv", form)
    splits = group_table(table, group="school", target="score")
    names = [split.group_names for _, split in splits]
    assert [len(part) for part in names] == [6, 2, 2]
    assert {name for part in names for name in part} == set(SCHOOLS)
    for (_, split), part in zip(splits, names, strict=True):
        inputs, targets = by_hand(set(names[0]), list(part))
        torch.testing.assert_close(tensor_of(split.examples.inputs), inputs, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(split.targets, targets, rtol=1e-12, atol=0)
        assert split.feature_names == ("age", "town=north", "town=south", "town=west")
    assert splits.notes == ()


def test_the_division_follows_the_seed() -> None:
    def names(seed: int) -> list[tuple[str, ...]]:
        splits = group_table(TABLE, group="school", target="score", seed=seed)
        return [split.group_names for _, split in splits]

    assert names(0) == names(0) != names(1)


def test_a_target_of_texts_becomes_labels() -> None:
    splits = group_table(TABLE, group="school", target="town", features=["age"])
    assert splits.train.categories == ("north", "south", "west")
    rows = [r for name in splits.train.group_names for r in range(M) if SCHOOLS[r] == name]
    found = [splits.train.categories[label] for label in splits.train.targets]
    assert found == [TABLE["town"][row] for row in rows]


def test_classes() -> None:
    splits = class_table(TABLE, label="school", features=["score"], shares=(5, 3, 2))
    assert [len(split.class_names) for _, split in splits] == [5, 3, 2]
    train = [
        s for s, n in zip(TABLE["score"], SCHOOLS, strict=True) if n in splits.train.class_names
    ]
    for _, split in splits:
        expected = [
            (score - np.mean(train)) / np.std(train)
            for name in split.class_names
            for score, school in zip(TABLE["score"], SCHOOLS, strict=True)
            if school == name
        ]
        np.testing.assert_allclose(tensor_of(split.inputs)[:, 0], expected, rtol=1e-10)


def test_numbers_that_are_names() -> None:
    table = {**TABLE, "code": [10 * (row % 2) for row in range(M)]}
    splits = group_table(
        table, group="school", target="score", features=["code"], categorical=["code"]
    )
    assert splits.train.feature_names == ("code=0", "code=10")
    holed = [float("nan") if row == 3 else float(code) for row, code in enumerate(table["code"])]
    codes = [f"0{code}" for code in table["code"]]
    for values, names in ((holed, ("code=0", "code=10")), (codes, ("code=00", "code=010"))):
        splits = group_table(
            {**table, "code": values},
            group="school",
            target="score",
            features=["code"],
            categorical=["code"],
            missing="fill",
        )
        assert splits.train.feature_names == names


def test_groups_keep_the_zeros_of_their_names(tmp_path: Path) -> None:
    table = {**TABLE, "school": [f"00{name[-1]}" for name in SCHOOLS]}
    splits = group_table(written(tmp_path / "t.csv", ",", table), group="school", target="score")
    names = {name for _, split in splits for name in split.group_names}
    assert names == {f"00{n}" for n in range(10)}


def test_missing_values_are_named_or_filled() -> None:
    age, town = TABLE["age"].astype(float), TABLE["town"].astype(object)
    age[[3, 8]], town[5] = np.nan, None
    table = {**TABLE, "age": age, "town": town}
    settings: dict[str, Any] = {"group": "school", "target": "score"}
    with pytest.raises(
        DataError, match=r"2 values are missing in column 'age' \(rows 3, 8\): drop"
    ):
        group_table(table, **settings)
    splits = group_table(table, **settings, missing="fill")
    assert [note.split(" (")[0] for note in splits.notes] == [
        "2 values are missing in column 'age'",
        "1 value is missing in column 'town'",
    ]
    every: dict[int, list[float]] = {}
    for _, split in splits:
        for name in split.group_names:
            number = split.group_names.index(name)
            rows = [row for row in range(M) if SCHOOLS[row] == name]
            chosen = split.select([number])
            every.update(zip(rows, tensor_of(chosen.examples.inputs).tolist(), strict=True))
    assert [every[row][0] for row in (3, 8)] == [0, 0]
    assert every[5][1:] == [0, 0, 0]
    for name in ("score", "school"):
        holed = [None if row == 7 else value for row, value in enumerate(TABLE[name])]
        with pytest.raises(DataError, match=rf"1 value is missing in column '{name}' \(row 7\)"):
            group_table({**TABLE, name: holed}, **settings)


def test_categories_that_training_has_not() -> None:
    plain = group_table(TABLE, group="school", target="score")
    name = plain.test.group_names[0]
    towns = [
        "east" if school == name else town
        for town, school in zip(TABLE["town"], SCHOOLS, strict=True)
    ]
    splits = group_table({**TABLE, "town": towns}, group="school", target="score")
    assert splits.notes == (
        "categories of column 'town' that do not occur in training are encoded as zeros: east",
    )
    assert not tensor_of(splits.test.select([0]).examples.inputs)[:, 1:].any()


def test_small_groups_are_left_out() -> None:
    splits = group_table(TABLE, group="school", target="score", least=5, shares=(1, 1, 1))
    assert sum(len(split.group_names) for _, split in splits) == 6
    assert splits.notes == ("4 of 10 values of 'school' have fewer than 5 rows and are left out",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group": "class"}, "group is 'class': there is no such column among school, age"),
        ({"target": "mark"}, "target is 'mark'"),
        ({"features": ["score"]}, "features have 'score'"),
        ({"features": ["height"]}, "a feature is 'height'"),
        ({"categorical": ["height"]}, "categorical is 'height'"),
        ({"shares": (1, 0, 0)}, "leave none for validation"),
        ({"shares": (0, 0, 0)}, "at least one must be positive"),
        ({"table": 3}, "the table is a int"),
        ({"table": {**TABLE, "age": [1]}}, "differ in length"),
        ({"table": {**TABLE, "age": np.zeros((M, 2))}}, "must be \\[rows\\]"),
        ({"table": {**TABLE, "age": np.zeros(M, "datetime64[s]")}}, "turn times into numbers"),
        ({"table": {n: TABLE[n] for n in ("school", "score")}}, "no column beside school, score"),
        ({"table": "nowhere.csv"}, r"nowhere\.csv cannot be read"),
    ],
)
def test_what_does_not_fit(changes: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {"table": TABLE, "group": "school", "target": "score", **changes}
    with pytest.raises(DataError, match=message):
        group_table(settings.pop("table"), **settings)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n", "has no rows"),
        ("a,b\n" + "x" * 200_000 + ",1\n", "cannot be read as CSV .*field larger than"),
        ("a,a\n1,2\n", "several columns named 'a'"),
        ("a,b\n1,2\n3\n", "1 values in row 3 and 2 columns"),
    ],
)
def test_damaged_files(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        group_table(path, group="a", target="b")


def test_a_constant_column_is_zero_however_its_mean_is_rounded() -> None:
    train = group_table(TABLE, group="school", target="score").train.group_names
    constant = np.array([0.1 if school in train else 0.2 for school in SCHOOLS])
    splits = group_table({**TABLE, "constant": constant}, group="school", target="score")
    column = splits.train.feature_names.index("constant")
    assert tensor_of(splits.train.examples.inputs)[:, column].eq(0).all()
    assert np.allclose(tensor_of(splits.test.examples.inputs)[:, column], 0.1)


@pytest.mark.parametrize("name", ["age", "score"])
def test_infinite_values_are_refused(name: str) -> None:
    values = np.array(TABLE[name], dtype=float)
    values[3] = np.inf
    with pytest.raises(DataError, match=f"column '{name}' is infinite in row 3"):
        group_table({**TABLE, name: values}, group="school", target="score")
