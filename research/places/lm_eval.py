"""lm-evaluation-harness, with tasks from local files: the answers, and how likely it finds each."""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer

from hf_mabprune.architectures.positions import max_positions
from hf_mabprune.checkpoints.load import load_pruned
from hf_mabprune.places import PLACES, Found, Place, Subject, Untried
from hf_mabprune.tasks.causal_lm import CausalLM
from research.benchmarks.endings import Question, losses_of_endings, read_questions

DATA = "PLACES_DATA"  # variable of the environment: a folder with the files of FILES
FILES = {"hellaswag": "hellaswag/test.parquet", "boolq": "boolq/test.parquet"}
QUESTIONS, LONGEST, SEED = 100, 800, 0  # drawn of each; letters of a context, so that none is cut anywhere
SUFFIX = "_local"  # of the names of the tasks
TASKS = Path(__file__).with_name("lm_eval_tasks")
REMEDY = (
    f"pip install 'lm_eval[hf]==0.4.13', --python lm_eval=PATH and {DATA}=FOLDER, which holds "
    f"{' and '.join(FILES.values())}"
)
IMPORTING = "import hf_mabprune; from lm_eval.__main__ import cli_evaluate; cli_evaluate()"
Answers = dict[str, list[list[float]]]  # task -> log-likelihood of every ending, for each question


@PLACES.register("lm_eval")
class LMEval(Place):
    """lm-evaluation-harness 0.4.13 with HellaSwag and BoolQ from files, both ways of loading, and the dense model.

    Compared are mean log-likelihoods per token of all endings with those of the benchmark's own evaluation.
    """

    tolerance: ClassVar[float] = 1e-3

    def cannot(self, subject: Subject) -> str:
        """See `Place.cannot`."""
        return "" if subject.generates else "its tasks are for decoders"

    def recipe(self, subject: Subject) -> str:
        """See `Place.recipe`."""
        remote = ",trust_remote_code=True" if subject.layout == "per_layer" else ""
        return (
            f"lm_eval run --model hf --model_args pretrained=DIR,dtype=float32{remote} --include_path "
            "research/places/lm_eval_tasks --tasks hellaswag_local boolq_local"
        )

    def reach(self, subject: Subject, work: Path) -> Found:
        """See `Place.reach`."""
        python, data = subject.pythons.get("lm_eval"), os.environ.get(DATA)
        if not python or not data or not subject.dense:
            raise Untried(REMEDY)
        quizzes = {name: drawn(Path(data) / file, work / f"{name}.parquet") for name, file in FILES.items()}
        folder = str(subject.folder.resolve())
        plain, _ = answers_of(python, folder, work, trusted=subject.layout == "per_layer")
        imported, stated = answers_of(python, folder, work, importing=True)
        _, dense = answers_of(python, subject.dense, work)
        losses, before = own_losses(folder, quizzes), own_losses(subject.dense, quizzes)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        said = [
            f"{name}, {len(quiz)} questions: accuracy {stated[name]} (dense {dense[name]}), by the benchmark "
            f"{_accuracy(losses[name], quiz):.3f} (dense {_accuracy(before[name], quiz):.3f})"
            for name, quiz in quizzes.items()
        ]
        difference = max(_apart(each, losses, quizzes, tokenizer) for each in (plain, imported))
        return Found(difference, "mean log-likelihoods per token", "; ".join(said))


def drawn(source: Path, file: Path) -> list[Question]:
    """Draws questions with short contexts, and writes them, in the same order, where the task files look for them."""
    questions = read_questions(str(source), QUESTIONS, SEED)
    short = np.array([len(question.context) < LONGEST for question in questions])
    frame = pd.read_parquet(source).sample(len(questions), random_state=SEED)  # as `read_questions` draws
    frame[short].to_parquet(file, index=False)
    return [question for question, taken in zip(questions, short, strict=True) if taken]


def answers_of(
    python: str, folder: str, work: Path, trusted: bool = False, importing: bool = False
) -> tuple[Answers, dict[str, str]]:
    """Runs the harness on a checkpoint.

    Args:
        python: Python that has it.
        folder: Checkpoint.
        work: Folder with the files of questions.
        trusted: Whether the code beside the weights may run.
        importing: Whether this package is imported first.

    Returns:
        Log-likelihoods of all endings, and the accuracies that it states, in words: "0.310, by length 0.350".

    Raises:
        RuntimeError: If it fails, with the last line that it said.
    """
    out = work / f"out-{len(list(work.glob('out-*')))}"
    remote = ",trust_remote_code=True" if trusted else ""
    command = [
        *([python, "-c", IMPORTING] if importing else [python, "-m", "lm_eval"]),
        *("run", "--model", "hf", "--model_args", f"pretrained={folder},dtype=float32{remote}", "--device", "cpu"),
        *("--tasks", *(f"{name}{SUFFIX}" for name in FILES), "--include_path", str(TASKS), "--batch_size", "8"),
        *("--log_samples", "--output_path", str(out)),
    ]
    paths = {"PYTHONPATH": str(Path(__file__).parents[2])} if importing else {}
    without = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(work / "cache"), "HF_MODULES_CACHE": str(work / "code")}
    options: Any = {"cwd": work, "env": {**without, **offline, **paths}, "capture_output": True, "text": True}
    done = subprocess.run(command, check=False, **options)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    stated = json.loads(next(out.rglob("results_*.json")).read_text())["results"]
    return {name: _logged(out, name) for name in FILES}, {name: _stated(stated[f"{name}{SUFFIX}"]) for name in FILES}


def _logged(out: Path, name: str) -> list[list[float]]:
    """Reads the log-likelihoods of endings from what the harness logged of a task."""
    lines = next(out.rglob(f"samples_{name}{SUFFIX}_*.jsonl")).read_text().splitlines()
    samples = sorted(map(json.loads, lines), key=lambda sample: sample["doc_id"])
    return [[float(ending[0]) for ending in sample["filtered_resps"]] for sample in samples]


def _stated(results: dict[str, Any]) -> str:
    by_length = f", by length {results['acc_norm,none']:.3f}" if "acc_norm,none" in results else ""
    return f"{results['acc,none']:.3f}{by_length}"


def own_losses(folder: str, quizzes: dict[str, list[Question]]) -> dict[str, list[NDArray[np.float64]]]:
    """Gives the mean negative log-likelihoods per token of all endings, as the benchmark measures them."""
    model = load_pruned(folder, dtype=torch.float32).eval()
    task = CausalLM(processor=AutoTokenizer.from_pretrained(folder), model_config=model.config)
    length = max_positions(model.config)
    return {name: losses_of_endings(model, task, quiz, length, 8) for name, quiz in quizzes.items()}


def _apart(answers: Answers, losses: dict[str, list[NDArray[np.float64]]], quizzes: Any, tokenizer: Any) -> float:
    """Gives the largest difference of mean log-likelihoods per token."""
    apart = 0.0
    for name, quiz in quizzes.items():
        for question, logged, own in zip(quiz, answers[name], losses[name], strict=True):
            counts = [len(tokenizer(ending, add_special_tokens=False)["input_ids"]) for ending in question.endings]
            apart = max(apart, float(np.abs(np.divide(logged, counts) + own).max()))
    return apart


def _accuracy(losses: list[NDArray[np.float64]], quiz: Sequence[Question]) -> float:
    pairs = zip(losses, quiz, strict=True)
    return float(np.mean([int(np.argmin(each)) == question.right for each, question in pairs]))
