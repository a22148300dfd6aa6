"""How many rows of one split are in another, beyond what data repeat by themselves.

Symbols: N rows.
"""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from numpy.typing import NDArray

from hf_mabprune.data.columns import column_of, is_text

Hashes = NDArray[np.uint64]
TAIL = 1024  # bytes at the end of an image, whose compressed content they are


def row_hashes(dataset: Dataset, columns: Sequence[str]) -> Hashes:
    """Gives a number for what each row holds in some columns, [N]; rows of the same values have the same."""
    hashes = np.zeros(len(dataset), dtype=np.uint64)
    for column in columns:
        hashes = hashes * np.uint64(1_000_003) + _hashes(column_of(dataset, column))  # wraps around
    return hashes


def _hashes(values: pa.ChunkedArray) -> Hashes:
    """Gives a number for each value, [N]."""
    if is_text(values.type):
        return pd.util.hash_array(values.to_numpy(), categorize=False)
    if pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or pa.types.is_boolean(values.type):
        return pd.util.hash_array(values.to_numpy().astype(np.float64))
    if pa.types.is_struct(values.type) and values.type.get_field_index("bytes") >= 0:
        values = _ends_of_files(values)
    digests = (blake2b(repr(value.as_py()).encode(), digest_size=8).digest() for value in values)
    return np.frombuffer(b"".join(digests), dtype=np.uint64)


def _ends_of_files(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Gives what tells images apart without reading all of them: the length and the last bytes, or the path."""
    content = pc.struct_field(values, "bytes")
    tail = pc.binary_slice(content, -TAIL)
    parts = [*(array.combine_chunks() for array in (tail, pc.binary_length(content), pc.struct_field(values, "path")))]
    known = pc.if_else(parts[0].is_valid(), pa.scalar(None, parts[2].type), parts[2])  # a path is a name, no content
    return pa.chunked_array([pa.StructArray.from_arrays([*parts[:2], known], ["tail", "length", "path"])])


def same_rows(one: Hashes, other: Hashes) -> bool:
    """Tells whether two splits hold the same rows, each as often, in any order."""
    return len(one) == len(other) and bool((np.sort(one) == np.sort(other)).all())


def shared(rows: Hashes, seen: Hashes) -> int:
    """Counts the rows of a split that another split holds."""
    return int(np.isin(rows, seen).sum())


def repeated(rows: Hashes) -> float:
    """Gives the fraction of rows that occur again in their own split: what two draws of such data share by chance."""
    _, inverse, counts = np.unique(rows, return_inverse=True, return_counts=True)
    return float((counts[inverse] > 1).mean()) if len(rows) else 0.0
