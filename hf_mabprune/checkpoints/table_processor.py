"""Makes rows of a table into numbers for a model: what a fitted ColumnTransformer of scikit-learn knows, kept as JSON.

Symbols: N rows; n columns of numbers, m of them with an indicator of missing values; F features.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from hf_mabprune.checkpoints.stored_files import read_json, stored_file
from hf_mabprune.errors import outside

FILE = "table_processor.json"
NUMBERS, CATEGORIES = "numbers", "categories"  # names of the two parts of a ColumnTransformer
MISSING = "missing"  # the category of a row that has none


@dataclass(frozen=True)
class TableProcessor:
    """Imputes, scales and encodes the columns of a table, as it was fitted on the rows that a model was trained on.

    Of a column of numbers a missing value becomes the median; where training rows lacked some, another feature says
    which. Then all are scaled to mean 0 and deviation 1. A category becomes 1 in a place of its own; one that is
    missing is a category, too, and one that training rows did not have is 0 everywhere.

    Attributes:
        medians: Column of numbers -> what stands for a missing one, [n], in their order.
        flagged: Columns of numbers with an indicator, [m].
        means, scales: Of numbers and indicators, [n + m].
        categories: Column -> its categories, in the order of their features.
    """

    medians: Mapping[str, float]
    flagged: Sequence[str]
    means: Sequence[float]
    scales: Sequence[float]
    categories: Mapping[str, Sequence[str]]

    @classmethod
    def fit(cls, table: pd.DataFrame, categorical: Sequence[str] = ()) -> "TableProcessor":
        """Fits a ColumnTransformer on training rows, and keeps what it has learnt.

        Args:
            table: Columns of features.
            categorical: Columns of numbers that stand for categories; texts always do.

        Raises:
            ValueError: If a column is neither of numbers nor of texts.
        """
        given = set(categorical)
        names = list(map(str, table))
        texts = [name for name in names if name in given or not pd.api.types.is_numeric_dtype(table[name])]
        numbers = [name for name in names if name not in texts]
        return cls.of(column_transformer(numbers, texts).fit(typed(table, numbers, texts)))

    @classmethod
    def of(cls, fitted: ColumnTransformer) -> "TableProcessor":
        """Reads what a fitted `column_transformer` has learnt."""
        columns = {name: list(map(str, of)) for name, _, of in fitted.transformers_}
        medians, flagged, means, scales, categories = {}, [], [], [], {}
        if numbers := columns.get(NUMBERS):
            imputer, scaler = (step for _, step in fitted.named_transformers_[NUMBERS].steps)
            medians = dict(zip(numbers, imputer.statistics_.tolist(), strict=True))
            flagged = [numbers[index] for index in imputer.indicator_.features_]
            means, scales = scaler.mean_.tolist(), scaler.scale_.tolist()
        if texts := columns.get(CATEGORIES):
            encoder = fitted.named_transformers_[CATEGORIES].steps[1][1]
            categories = {name: own.tolist() for name, own in zip(texts, encoder.categories_, strict=True)}
        return cls(medians, flagged, means, scales, categories)

    @property
    def columns(self) -> list[str]:
        """Names the columns that are read, those of numbers first."""
        return [*self.medians, *self.categories]

    def __len__(self) -> int:
        """Counts the features, F."""
        return len(self.means) + sum(map(len, self.categories.values()))

    def __call__(self, table: pd.DataFrame) -> NDArray[np.float64]:
        """Gives the features of each row, [N, F], as the ColumnTransformer does, to the last bit.

        Args:
            table: Rows that have all columns.

        Raises:
            ValueError: If a value of a column of numbers is none.
        """
        plain = typed(table, list(self.medians), list(self.categories))
        numbers = plain[list(self.medians)].to_numpy(dtype=np.float64).reshape(len(plain), -1)
        absent = np.isnan(numbers)
        filled = np.where(absent, list(self.medians.values()), numbers)
        flags = absent[:, [name in self.flagged for name in self.medians]]
        scaled = (np.hstack([filled, flags]) - self.means) / self.scales
        filled_in = {name: plain[name].fillna(MISSING).to_numpy(dtype=object) for name in self.categories}
        encoded = [filled_in[name][:, None] == np.array(own, dtype=object) for name, own in self.categories.items()]
        return np.hstack([scaled, *encoded]).astype(np.float64)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes it into a folder as JSON."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / FILE).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, name: str | Path, **origin: Any) -> "TableProcessor":
        """Reads it from a stored model.

        Args:
            name: Folder or Hub name.
            origin: Options of `from_pretrained` that say which files are meant.

        Raises:
            OSError: If there is none.
            ValueError: If what is there is none.
        """
        path = stored_file(str(name), FILE, **origin)
        if path is None:
            raise FileNotFoundError(f"{name} holds no {FILE}")
        content = read_json(path)
        with outside(f"{path} cannot be read", "save it again with the model"):
            if content.keys() != {field.name for field in fields(cls)}:
                raise ValueError(f"it must hold {', '.join(field.name for field in fields(cls))}")
            _check(content)
        return cls(**content)


def column_transformer(numbers: Sequence[str], categorical: Sequence[str]) -> ColumnTransformer:
    """Makes the transformer that is fitted: medians, indicators and scaling for numbers, one-hot codes for the rest.

    Args:
        numbers: Columns of numbers.
        categorical: Columns of categories; `typed` makes both what it takes.
    """
    imputer = SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)
    filling = SimpleImputer(strategy="constant", fill_value=MISSING)
    encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    parts = [
        (NUMBERS, make_pipeline(imputer, StandardScaler()), list(numbers)),
        (CATEGORIES, make_pipeline(filling, encoder), list(categorical)),
    ]
    return ColumnTransformer([part for part in parts if part[2]], sparse_threshold=0)


def typed(table: pd.DataFrame, numbers: Sequence[str], categorical: Sequence[str]) -> pd.DataFrame:
    """Gives columns in their types: numbers in float64, categories as texts, and NaN where a value is missing.

    Raises:
        ValueError: If a value of a column of numbers is none, or one of a category neither text nor number.
    """
    columns = {name: _numbers(table[name]) for name in numbers} | {name: _texts(table[name]) for name in categorical}
    return pd.DataFrame(columns, index=table.index)


def _numbers(values: "pd.Series[Any]") -> NDArray[np.float64]:
    """Gives the numbers of a column, [N]."""
    with outside(f"column '{values.name}' must hold numbers"):
        return values.to_numpy(dtype=np.float64, na_value=np.nan)


def _texts(values: "pd.Series[Any]") -> "pd.Series[Any]":
    """Gives the categories of a column as texts, [N]."""
    return values.astype(object).map(_text, na_action="ignore").where(values.notna(), np.nan)


def _text(value: Any) -> str:
    """Writes a category; whole numbers alike whatever their type, which missing values of a column change."""
    if isinstance(value, str):
        return value
    if not isinstance(value, (bool, int, float, np.bool_, np.number)):
        raise ValueError(f"a category must be a text or a number, got {type(value).__name__}")
    whole = not isinstance(value, (bool, np.bool_)) and float(value).is_integer()
    return str(int(value) if whole else value)


def _check(content: Mapping[str, Any]) -> None:
    """Refuses contents of a file that no fit gives, with a ValueError."""
    medians, flagged, categories = content["medians"], content["flagged"], content["categories"]
    if not (isinstance(medians, dict) and isinstance(categories, dict)):
        raise ValueError("medians and categories must be mappings from columns")
    if not (isinstance(flagged, list) and all(name in medians for name in flagged)):
        raise ValueError("flagged must list columns that medians has")
    count = len(medians) + len(flagged)
    for name, values in (
        ("medians", list(medians.values())),
        ("means", content["means"]),
        ("scales", content["scales"]),
    ):
        if not (
            isinstance(values, list) and all(type(each) in (int, float) and math.isfinite(each) for each in values)
        ):
            raise ValueError(f"{name} must be finite numbers")
        if name != "medians" and len(values) != count:
            raise ValueError(f"{name} must be {count} numbers, one for each number and indicator, got {len(values)}")
    if not all(scale > 0 for scale in content["scales"]):
        raise ValueError("scales must be > 0")
    for name, own in categories.items():
        if name in medians or not (isinstance(own, list) and all(isinstance(each, str) for each in own)):
            raise ValueError(f"the categories of {name:.60} must be texts, of a column that is not of numbers")
