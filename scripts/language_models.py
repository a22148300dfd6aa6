"""What smaller language models are worth beside the one they were made from: perplexity, divergence, questions.

    python scripts/language_models.py google/gemma-3-270m runs/gemma-wikitext2 \\
        --texts wikitext2=wikitext2/test.parquet tinystories=tinystories/validation.parquet \\
        --choices hellaswag=hellaswag/test.parquet boolq=boolq/test.parquet

The first model is the dense one. Prints one line a model and text, or a file of questions, each with a 95% interval
(paired bootstrap over windows or questions):

- perplexity, and by how much it is above the dense model's; KL divergence from it, in nats a token;
- questions answered right, by the ending with the highest mean log-likelihood a token, and how many more than before.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray
from transformers import PreTrainedModel

sys.path.insert(0, str(Path(__file__).parents[1]))  # research/ is no part of what is installed

from hf_mabprune.architectures.cost import count_parameters
from hf_mabprune.checkpoints.load import load_config, load_weights
from hf_mabprune.checkpoints.processors import load_processor
from hf_mabprune.cli.guard import guarded
from hf_mabprune.config import DatasetConfig, TaskConfig
from hf_mabprune.evaluation.quality import Evaluation, evaluate, forward_of, percentiles, resample
from hf_mabprune.runtime.accelerator import make_accelerator
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import Batch
from hf_mabprune.tasks.lookup import build_task
from research.benchmarks.endings import Question, answered, read_questions
from research.benchmarks.language import named, windows

SEED = 0


def main() -> int:
    """Parses, runs one model after the other, prints; one line and exit code 2 for what the user can mend."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dense", help="folder or Hub name of the model that the others were made from")
    parser.add_argument("models", nargs="+", help="folders or Hub names of those")
    parser.add_argument("--texts", nargs="+", default=[], help="NAME=FILE each, a file with a column `text`")
    parser.add_argument("--choices", nargs="+", default=[], help="NAME=FILE each, as HellaSwag or BoolQ have them")
    parser.add_argument("--length", type=int, default=512, help="tokens of a window, and of a question at most")
    parser.add_argument("--windows", type=int, default=195, help="drawn of each text")
    parser.add_argument("--positions", type=int, help="predictions of each window that count; default: all")
    parser.add_argument("--questions", type=int, default=500, help="drawn of each file")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--dtype", default="bfloat16", help="of the weights, all models alike")
    options = parser.parse_args()
    return guarded(lambda _: compare(options), [])


def compare(options: argparse.Namespace) -> str:
    """Prints the lines of all models, and how many they were of.

    Raises:
        ValueError, OSError: For a model, texts or questions that are not there or cannot be read; before any of them
            runs.
    """
    for place in options.models:
        load_config(place)
    read = partial(load_weights, "AutoModelForCausalLM", dtype=options.dtype)
    dense, accelerator = read(options.dense).eval(), make_accelerator()
    settings = TaskConfig(
        type="causal_lm",
        dataset=DatasetConfig(path="in-memory"),
        max_length=options.length,
        batch_size=options.batch_size,
        evaluation_examples=options.windows,
        evaluation_positions=options.positions,
    )
    config, tokenizer = load_config(options.dense), load_processor("AutoTokenizer", options.dense)
    task = build_task(settings, tokenizer, config)
    texts = {name: windows(settings, task, name, file, SEED) for name, file in map(named, options.texts)}
    quizzes = {name: read_questions(file, options.questions, SEED) for name, file in map(named, options.choices)}
    side = Side(dense, task, accelerator, options)
    own = {name: side.on_text(dense, batches) for name, batches in texts.items()}
    right = {name: side.on_questions(dense, quiz) for name, quiz in quizzes.items()}
    for name, found in own.items():
        print(
            f"{options.dense}, {name}: perplexity {np.exp(found.loss):.2f} ({found.scores.positions.sum():,} tokens)"
        )
    for name, answers in right.items():
        print(f"{options.dense}, {name}: {answers.sum():.0f} of {len(answers)} right", flush=True)
    for place in options.models:
        model = read(place).eval()
        print(f"{place}: {count_parameters(model)['parameters'] / 1e6:.1f}M", flush=True)
        for name, batches in texts.items():
            print(f"{place}, {name}: {beside(side.on_text(model, batches), own[name])}", flush=True)
        for name, quiz in quizzes.items():
            print(f"{place}, {name}: {more_right(side.on_questions(model, quiz), right[name])}", flush=True)
    return f"{1 + len(options.models)} models compared\n"


class Side:
    """Runs models beside the dense one.

    Args:
        dense: The dense model.
        task: Its task.
        accelerator: Of the launch.
        options: Length and batch size.
    """

    def __init__(
        self, dense: PreTrainedModel, task: Task, accelerator: Accelerator, options: argparse.Namespace
    ) -> None:
        self.dense, self.task, self.accelerator, self.options = dense, task, accelerator, options

    def on_text(self, model: PreTrainedModel, batches: Sequence[Batch]) -> Evaluation:
        """Measures losses and divergences of windows."""
        original = None if model is self.dense else forward_of(self.dense, self.task)
        forward = forward_of(model, self.task)
        return evaluate(forward, self.task, batches, self.accelerator, original, intervals=False)

    def on_questions(self, model: PreTrainedModel, quiz: Sequence[Question]) -> NDArray[np.float64]:
        """Tells which questions a model answers right, [N] of 0 and 1."""
        size = 4 * self.options.batch_size  # endings are short
        return answered(model, self.task, quiz, self.options.length, size).astype(float)


def beside(small: Evaluation, dense: Evaluation) -> str:
    """Says what a smaller model has of perplexity and divergence."""
    weights = dense.scores.positions

    def more(rows: NDArray[np.int64]) -> float:
        differences = small.scores.losses[rows] - dense.scores.losses[rows]
        return float(np.expm1(np.average(differences, weights=weights[rows])))

    every = np.arange(len(weights))
    low, high = percentiles(resample(more, len(every)))
    perplexity = f"{np.exp(small.loss):.2f} ({more(every):+.1%}, {low:+.1%} to {high:+.1%})"
    return f"perplexity {perplexity}, KL {small.kl.mean():.4f}"


def more_right(small: NDArray[np.float64], dense: NDArray[np.float64]) -> str:
    """Says how many questions a smaller model answers right, and in points how many more than the dense model."""
    difference = 100 * (small - dense)
    low, high = percentiles(resample(lambda rows: float(difference[rows].mean()), len(difference)))
    return f"{small.sum():.0f} of {len(small)} right ({difference.mean():+.1f} points, {low:+.1f} to {high:+.1f})"


if __name__ == "__main__":
    sys.exit(main())
