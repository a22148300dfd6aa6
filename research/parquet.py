"""Frames as parquet files that are whole or not there."""

import io
from pathlib import Path

import pandas as pd

from hf_mabprune.runtime.files import write_atomically


def write_parquet(path: str | Path, frame: pd.DataFrame) -> None:
    """Writes a frame without its index, in the place of what is there."""
    content = io.BytesIO()
    frame.to_parquet(content, index=False, compression="zstd")
    write_atomically(Path(path), content.getvalue())
