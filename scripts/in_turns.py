"""How long passes of some checkpoints take to those of another, taken in turns: median of pairs.

    python scripts/in_turns.py DENSE PRUNED [PRUNED ...] --batch 1 --length 32
    python scripts/in_turns.py me/dense runs/x --batch 32 --length 128 --engine onnxruntime --pairs 20

A row for each pruned checkpoint, with its multiply-accumulates to those of the first, for an example of that length.
With --processor-time, seconds that processors spend take the place of those on the wall: what one thread needs on a
machine that others keep busy.
"""

import argparse
import time

import torch
from transformers import PreTrainedModel

from hf_mabprune.architectures.cost import count_macs
from hf_mabprune.checkpoints.load import load_pruned
from hf_mabprune.checkpoints.processors import load_processor
from hf_mabprune.config import LatencyTarget
from hf_mabprune.quantities import timing


def main() -> None:
    """Times, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dense", help="folder or Hub name of the model that the others are compared with")
    parser.add_argument("pruned", nargs="+", help="folder or Hub name")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=32, help="tokens of each sequence")
    parser.add_argument("--phase", default="prefill", choices=["prefill", "decode"])
    parser.add_argument("--engine", default="torch", choices=["torch", "onnxruntime"])
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--processor-time", action="store_true", help="see above")
    known = parser.parse_args()
    if known.processor_time:
        time.perf_counter = time.process_time
    asked = LatencyTarget(amount=0.5, batch=known.batch, length=known.length, phase=known.phase, engine=known.engine)
    dense, tokenizer = _read(known.dense), load_processor("AutoTokenizer", known.dense)
    names = getattr(tokenizer, "model_input_names", ("input_ids", "attention_mask"))
    example = {name: torch.full((1, known.length), int(name != "token_type_ids")) for name in names}
    timing.check_timing(dense, asked)
    print("| checkpoint | time | MACs |\n| --- | --- | --- |")
    with timing.passes(dense, asked, example, tokenizer) as first:
        for name in known.pruned:
            small = _read(name)
            with timing.passes(small, asked, example, tokenizer) as second:
                taken = timing.ratio(first, second, known.pairs)
            print(f"| {name} | {taken:.3f} | {count_macs(small, example) / count_macs(dense, example):.3f} |")


def _read(name: str) -> PreTrainedModel:
    return load_pruned(name, dtype=torch.float32).eval()


if __name__ == "__main__":
    main()
