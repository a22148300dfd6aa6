"""Small Python programs that call prune(), as a user writes them; a refusal is printed as the command line does."""

START = """
import sys, torch, numpy as np, pandas as pd, datasets
from datasets import Dataset, load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from hf_mabprune import prune
model = AutoModelForSequenceClassification.from_pretrained("models/bert")
tokenizer = AutoTokenizer.from_pretrained("models/bert")
"""
DATA = """
names = ("train", "validation", "test")
calibration, validation, test = (Dataset.from_parquet(f"data/{name}.parquet") for name in names)
"""
CALL = """
options = dict(task={"batch_size": 8}, search={"rounds": 2, "pulls_per_arm": 2},
               prune={"block_size": 8, "layout": "per_layer"}, output={"random_seeds": 1})
"""
TRY = """
try:
    prune(model, tokenizer, calibration, validation, test, {"neurons": 0.5, "heads": 0.5}, "out", **options)
except (ValueError, OSError, TypeError) as error:
    if isinstance(error, TypeError) and "\\n" in str(error):
        raise
    sys.stderr.write(f"mabprune: {error}\\n")
    sys.exit(2)
"""


def program(after_model: str = "", after_data: str = "", around: str = "", after: str = "") -> str:
    """Gives the source of a program.

    Args:
        after_model: Lines after the model and its tokenizer are there.
        after_data: Lines after the data sets are there, and the options of the call.
        around: A with statement around the call.
        after: Lines after it.
    """
    call = TRY
    if around:
        indented = "\n".join(f"    {line}" for line in TRY.strip().splitlines())
        call = f"{around}\n{indented}\n"
    return "\n".join([START, guarded(after_model), DATA, CALL, guarded(after_data), call, after])


def guarded(lines: str) -> str:
    """Gives lines whose own failure is no fault of prune()."""
    body = "\n".join(f"    {line}" for line in lines.splitlines() or ["pass"])
    refusal = 'sys.stderr.write(f"mabprune: the case cannot be made: {error!r:.99}\\n")'
    return f"try:\n{body}\nexcept Exception as error:\n    {refusal}\n    sys.exit(2)\n"
