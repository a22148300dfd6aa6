"""Checks a pruned checkpoint against the model it came from: masked = pruned = reloaded, and equal generation.

    python scripts/verify.py runs/quickstart
    python scripts/verify.py runs/llama-wikitext2 --dense path/to/model --new-tokens 64

Reads arms and layout from the run in CHECKPOINT/mabprune, and model and task from its config.yaml. `--plugin FILE`
loads a family or task that comes from elsewhere.
"""

import argparse
import copy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import torch
import transformers
from datasets.utils import disable_progress_bars
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_mabprune import load_pruned
from hf_mabprune.arms import ArmTable, KeepIndices
from hf_mabprune.artifacts.run_folder import RunFolder
from hf_mabprune.cli.settings import read_run_config, take_plugins
from hf_mabprune.config import PruneConfig, check
from hf_mabprune.data.splits import load_splits
from hf_mabprune.effects.masking import keep_masks, masked
from hf_mabprune.session import load_model
from hf_mabprune.surgery.cut import Layout, cut
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import Batch
from hf_mabprune.tasks.lookup import build_task
from hf_mabprune.tasks.sampling import batches_of, encode_sample

TOLERANCE = 1e-4  # on logits


def main() -> int:
    """Parses, compares, prints; exit code 1 where something differs."""
    options = parse()
    settings = check(read_run_config(str(options.checkpoint)))
    name = options.dense or settings.model.name
    dense, processor = load_model(settings.model.model_copy(update={"name": name}), settings.task)
    table, report = RunFolder(options.checkpoint).read()
    arms = ArmTable(**{field: table[field].to_numpy() for field in ArmTable.__dataclass_fields__})
    keep = arms.kept_units(table["kept"].to_numpy())
    pruned = cut(dense.eval(), keep, cast(Layout, report.layout))
    reloaded = load_pruned(options.checkpoint, dtype=dense.dtype).eval()

    test = load_splits(settings.task)["test"]
    task = build_task(settings.task, copy.deepcopy(processor), dense.config, type(dense).__name__)
    encoded = encode_sample(task, test, options.prompts, settings.seed)
    batch = batches_of(task, encoded, options.prompts)[0]
    agree = logits_agree(settings, dense, pruned, reloaded, keep, task, batch)
    if reloaded.can_generate():
        texts = test.flatten()[task.find_columns(test, "test")[task.roles[0]]]
        prompt = prompts(texts, cast(PreTrainedTokenizerBase, processor), options.prompts, options.prompt_tokens)
        first = reloaded if changed_after_cut(settings) else pruned
        agree &= generations_agree(first, reloaded, prompt, options.new_tokens)
    return int(not agree)


def parse() -> argparse.Namespace:
    """Reads the command line, and quietens the libraries."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--dense", help="the dense model; the one in config.yaml when left out")
    parser.add_argument("--prompts", type=int, default=8, help="examples of the test split")
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=64, help="greedy tokens, language models only")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    disable_progress_bars()
    _, arguments = take_plugins(sys.argv[1:])
    return parser.parse_args(arguments)


def changed_after_cut(settings: PruneConfig) -> bool:
    """Says whether the saved weights were refitted or trained after the cut."""
    return settings.compensation is not None or settings.recovery is not None


def logits_agree(
    settings: PruneConfig,
    dense: PreTrainedModel,
    pruned: PreTrainedModel,
    reloaded: PreTrainedModel,
    keep: KeepIndices,
    task: Task,
    batch: Batch,
) -> bool:
    """Compares the logits of the masked, the cut and the saved model on a batch; prints the largest differences."""
    inputs = task.inputs(batch)
    with torch.inference_mode():
        with masked(dense, **keep_masks(dense, keep)):
            by_mask = dense(**inputs).logits
        by_cut, read = pruned(**inputs).logits, reloaded(**inputs).logits
    differences = {"masked - pruned": by_mask - by_cut, "pruned - reloaded": by_cut - read}
    if changed_after_cut(settings):
        print("the saved weights were refitted or trained after the cut: pruned and reloaded are not compared")
        del differences["pruned - reloaded"]
    for what, difference in differences.items():
        print(f"{what}: largest logit difference {float(difference.abs().max()):.2g}")
    return all(float(difference.abs().max()) <= TOLERANCE for difference in differences.values())


def prompts(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, count: int, tokens: int
) -> dict[str, torch.Tensor]:
    """Makes a left-padded batch of beginnings of texts, of different lengths.

    Args:
        texts: Texts of the test split; long ones are taken first.
        tokenizer: Tokenizer of the model.
        count: Number of prompts, at most.
        tokens: Length of the longest.
    """
    texts = ([text for text in texts if len(text) > 8 * tokens] or list(texts))[:count]
    lengths = [max(2, tokens - number) for number in range(len(texts))]
    beginnings = [tokenizer(text)["input_ids"][:length] for text, length in zip(texts, lengths, strict=True)]
    batch = tokenizer.pad({"input_ids": beginnings}, padding_side="left", return_tensors="pt")
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}


def generations_agree(
    pruned: PreTrainedModel, reloaded: PreTrainedModel, batch: dict[str, torch.Tensor], tokens: int
) -> bool:
    """Compares greedy tokens of both models, one prompt at a time and as a left-padded batch; prints the outcome."""
    singles = [
        {name: tensor[row : row + 1, batch["attention_mask"][row].bool()] for name, tensor in batch.items()}
        for row in range(len(batch["input_ids"]))
    ]
    same = [torch.equal(greedy(pruned, one, tokens), greedy(reloaded, one, tokens)) for one in singles]
    together = torch.equal(greedy(pruned, batch, tokens), greedy(reloaded, batch, tokens))
    print(f"greedy generation, {tokens} tokens with KV cache: {sum(same)} of {len(same)} prompts equal; "
          f"left-padded batch {'equal' if together else 'DIFFERENT'}")  # fmt: skip
    return all(same) and together


def greedy(model: PreTrainedModel, batch: dict[str, torch.Tensor], tokens: int) -> torch.Tensor:
    """Generates just so many tokens, the likeliest at each step."""
    generate = cast(Callable[..., torch.Tensor], model.generate)
    return generate(**batch, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, use_cache=True)


if __name__ == "__main__":
    sys.exit(main())
