"""Checks a pruned checkpoint against the model it came from: masked = pruned = reloaded, and equal generation.

    python scripts/verify.py runs/quickstart
    python scripts/verify.py runs/llama-wikitext2 --original path/to/model --new-tokens 64

Reads what was kept from CHECKPOINT/mabprune/arms.parquet and the settings from CHECKPOINT/mabprune/config.yaml.
"""

import argparse
import copy
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import transformers
from datasets.utils import disable_progress_bars
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_mabprune import load_pruned
from hf_mabprune.arms import KINDS, KeepIndices
from hf_mabprune.cli.settings import read_run_config
from hf_mabprune.config import check
from hf_mabprune.data.splits import load_splits
from hf_mabprune.effects.masking import keep_masks, masked
from hf_mabprune.evaluation.report import Report
from hf_mabprune.pipeline import load_model
from hf_mabprune.surgery.cut import prune_copy
from hf_mabprune.tasks.base import build_task
from hf_mabprune.tasks.sampling import batches_of, encode_sample

TOLERANCE = 1e-4


def main() -> int:
    """Parses, compares, prints; exit code 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--original", help="the dense model; the one in config.yaml when left out")
    parser.add_argument("--prompts", type=int, default=8, help="examples of the test split")
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=64, help="greedy tokens, language models only")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    disable_progress_bars()

    settings = check(read_run_config(str(options.checkpoint)))
    layout = Report.from_json(options.checkpoint / "mabprune" / "report.json").layout
    name = options.original or settings.model.name
    original, tokenizer = load_model(settings.model.model_copy(update={"name": name}), settings.task)
    keep = kept_indices(pd.read_parquet(options.checkpoint / "mabprune" / "arms.parquet"))
    pruned = prune_copy(original.eval(), keep, layout)
    reloaded = load_pruned(options.checkpoint, dtype=original.dtype).eval()

    test = load_splits(settings.task)["test"]
    task = build_task(settings.task, copy.deepcopy(tokenizer), original.config, type(original).__name__)
    encoded = encode_sample(task, test, options.prompts, settings.seed)
    inputs = task.inputs(batches_of(task, encoded, options.prompts)[0])
    with torch.inference_mode():
        with masked(original, **keep_masks(original, keep)):
            by_mask = original(**inputs).logits
        cut, read = pruned(**inputs).logits, reloaded(**inputs).logits
    differences = {"masked - pruned": by_mask - cut, "pruned - reloaded": cut - read}
    if settings.compensation:
        print("the saved weights were refitted after the cut: pruned and reloaded are not compared")
        del differences["pruned - reloaded"]
        pruned = reloaded
    failed = False
    for what, difference in differences.items():
        failed |= not float(difference.abs().max()) <= TOLERANCE
        print(f"{what}: largest logit difference {float(difference.abs().max()):.2g}")
    if reloaded.can_generate():
        texts = test[task.find_columns(test, "test")[task.roles[0]]]
        batch = prompts(texts, tokenizer, options.prompts, options.prompt_tokens)
        failed |= not generations_agree(pruned, reloaded, batch, options.new_tokens)
    return int(failed)


def kept_indices(arms: pd.DataFrame) -> KeepIndices:
    """Unit indices from the table of arms."""
    keep: dict[str, dict[int, list[int]]] = {kind: {} for kind in KINDS}
    for arm in arms.itertuples():
        units = keep[arm.kind].setdefault(arm.layer, [])
        units.extend(range(arm.start, arm.stop) if arm.kept else ())
    arrays = {kind: {layer: np.array(units) for layer, units in keep[kind].items()} for kind in KINDS}
    return KeepIndices(neurons=arrays["neuron"], heads=arrays["head"])


def prompts(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, count: int, tokens: int
) -> dict[str, torch.Tensor]:
    """A left-padded batch of beginnings of texts, of different lengths."""
    texts = ([text for text in texts if len(text) > 8 * tokens] or list(texts))[:count]
    lengths = [max(2, tokens - number) for number in range(len(texts))]
    cut = [tokenizer(text)["input_ids"][:length] for text, length in zip(texts, lengths, strict=True)]
    batch = tokenizer.pad({"input_ids": cut}, padding_side="left", return_tensors="pt")
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}


def generations_agree(
    pruned: PreTrainedModel, reloaded: PreTrainedModel, batch: dict[str, torch.Tensor], tokens: int
) -> bool:
    """Greedy tokens of both models, one prompt at a time and as a left-padded batch."""
    settings = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "use_cache": True}
    singles = [
        {name: tensor[row : row + 1, batch["attention_mask"][row].bool()] for name, tensor in batch.items()}
        for row in range(len(batch["input_ids"]))
    ]
    same = [torch.equal(pruned.generate(**one, **settings), reloaded.generate(**one, **settings)) for one in singles]
    together = torch.equal(pruned.generate(**batch, **settings), reloaded.generate(**batch, **settings))
    print(f"greedy generation, {tokens} tokens with KV cache: {sum(same)} of {len(same)} prompts equal; "
          f"left-padded batch {'equal' if together else 'DIFFERENT'}")  # fmt: skip
    return all(same) and together


if __name__ == "__main__":
    sys.exit(main())
