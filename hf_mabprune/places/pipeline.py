"""The pipelines of transformers."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel, pipeline

from hf_mabprune.checkpoints.load import load_pruned
from hf_mabprune.places.base import PLACES, Found, Place
from hf_mabprune.places.subject import Subject

TASKS = {
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForCausalLM": "text-generation",
}
CONTINUED, NEW_TOKENS = 2, 8  # texts, and tokens after each


@PLACES.register("pipeline")
class Pipeline(Place):
    """`transformers.pipeline`, after `import hf_mabprune` where sizes are per layer.

    Of classifiers the scores are compared, of decoders the tokens that follow a text.
    """

    at_end: ClassVar[bool] = True

    def cannot(self, subject: Subject) -> str:
        """See `Place.cannot`."""
        if subject.auto_class in TASKS and subject.texts:
            return ""
        return f"compared here for {' and '.join(TASKS.values())} alone"

    def recipe(self, subject: Subject) -> str:
        """See `Place.recipe`."""
        first = "import hf_mabprune; " if subject.layout == "per_layer" else ""
        return f'{first}pipeline("{TASKS.get(subject.auto_class, "TASK")}", "DIR")'

    @torch.inference_mode()
    def reach(self, subject: Subject, work: Path) -> Found:
        """See `Place.reach`."""
        task: Any = TASKS[subject.auto_class]
        pipe = pipeline(task, str(subject.folder), dtype=torch.float32, device="cpu")
        model = load_pruned(subject.folder, dtype=torch.float32).eval()
        if subject.generates:
            texts = subject.texts[:CONTINUED]
            others = sum(_others(model, pipe, text) for text in texts)
            return Found(float(others), "greedy tokens", f"of {NEW_TOKENS * len(texts)} tokens")
        return Found(max(_apart(model, pipe, text) for text in subject.texts), "scores")


def _apart(model: PreTrainedModel, pipe: Any, text: str) -> float:
    """Compares the scores of a text with those that a forward pass gives."""
    logits = model(**pipe.tokenizer(text, return_tensors="pt"))[0][0]
    several = len(logits) > 1
    said = pipe(text, top_k=None, function_to_apply="softmax" if several else "none")
    scores = {each["label"]: each["score"] for each in said}
    names: Any = model.config.id2label
    found = torch.tensor([scores[names[number]] for number in range(len(logits))])
    return float((found - (logits.softmax(-1) if several else logits)).abs().max())


def _others(model: PreTrainedModel, pipe: Any, text: str) -> int:
    """Counts the tokens after a text that are not those that forward passes without a cache give, one token each."""
    ids = pipe.tokenizer(text, return_tensors="pt")["input_ids"]
    for _ in range(NEW_TOKENS):
        ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
    (said,) = pipe(text, return_tensors=True, **options)
    found = torch.tensor(said["generated_token_ids"])[-NEW_TOKENS:]
    return int((found != ids[0, -NEW_TOKENS:]).sum())
