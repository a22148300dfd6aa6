"""What a saved model says of the rows of a task, read one at a time, so that nothing is padded.

Only where rows are made by this package's own rules (the windows and masks of masked language models, the processor of
tables) are its inputs taken.

Symbols: P positions of a row that count; C classes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset

HEADS = {
    "token_classification": "AutoModelForTokenClassification",
    "question_answering": "AutoModelForQuestionAnswering",
    "masked_lm": "AutoModelForMaskedLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "sentence_embedding": "AutoModel",
    "causal_lm": "AutoModelForCausalLM",
}
OTHERS = "AutoModelForSequenceClassification"


@dataclass
class Said:
    """What a model says of one row, and what is right.

    Attributes:
        z: Logits, [P, C], or numbers, [P].
        y: Right classes or numbers, [P].
        more: What else the metrics of the task need.
    """

    z: torch.Tensor
    y: torch.Tensor
    more: dict[str, Any] = field(default_factory=dict)


@torch.inference_mode()
def read(name: str, folder: str, settings: dict[str, Any]) -> Iterator[Said]:
    """Lets a model read the test rows of its run, one at a time."""
    model = load(name, folder)
    rows = Dataset.from_parquet(settings["task"]["dataset"]["data_files"]["test"])
    if name in PREPARED:
        yield from PREPARED[name](model, folder, settings)
        return
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for row in rows:
        yield READERS[name](model, tokenizer, row, settings["task"].get("max_length", 256))


def load(name: str, model: str) -> Any:
    """Loads a model in float32; the file that comes with a pruned one says what its sizes are."""
    if name.startswith("tabular"):
        import_module("research.studies.paper.mlp")  # so that transformers knows such models
    loader = getattr(transformers, HEADS.get(name, OTHERS))
    return loader.from_pretrained(model, dtype=torch.float32, trust_remote_code=True).eval()


def words(model: Any, tokenizer: Any, row: dict[str, Any], length: int) -> Said:
    """Reads the logits of the first token of every word."""
    encoded = tokenizer(
        row["tokens"], is_split_into_words=True, truncation=True, max_length=length, return_tensors="pt"
    )
    owners = encoded.word_ids()
    firsts = [place for place, word in enumerate(owners) if word is not None and owners.index(word) == place]
    tags = [model.config.label2id[row["ner_tags"][owners[place]]] for place in firsts]
    return Said(model(**encoded).logits[0, firsts], torch.tensor(tags), {"names": model.config.id2label})


def answer(model: Any, tokenizer: Any, row: dict[str, Any], length: int) -> Said:
    """Reads where an answer begins and ends, and the text between the likeliest places."""
    encoded = tokenizer(row["question"], row["context"], return_offsets_mapping=True, return_tensors="pt")
    places = encoded.pop("offset_mapping")[0]
    told = model(**encoded)
    starts, ends = told.start_logits[0], told.end_logits[0]
    inside = [place for place, text in enumerate(encoded.sequence_ids()) if text == 1]
    spans = [(float(starts[a] + ends[b]), a, b) for a in inside for b in inside if a <= b < a + 30]
    _, first, last = max(spans, key=lambda span: span[0])
    begin, right = row["answers"]["answer_start"][0], row["answers"]["text"][0]
    held = [a for a in inside if places[a, 0] < begin + len(right) and places[a, 1] > begin]
    predicted = row["context"][places[first, 0] : places[last, 1]]
    return Said(torch.stack([starts, ends]), torch.tensor([held[0], held[-1]]), {"texts": (predicted, right)})


def labels(model: Any, tokenizer: Any, row: dict[str, Any], length: int) -> Said:
    """Reads the outputs of a text or a pair, one a label or number."""
    texts = [row[name] for name in ("text", "text_pair") if name in row]
    encoded = tokenizer(*texts, truncation=True, max_length=length, return_tensors="pt")
    right = row["label"] if "label" in row else row["labels"]
    return Said(model(**encoded).logits[0], torch.tensor(right))


def sequence(model: Any, tokenizer: Any, row: dict[str, Any], length: int) -> Said:
    """Reads the logits of a target, and what is generated."""
    source = tokenizer(row["source"], truncation=True, max_length=length, return_tensors="pt")
    target = tokenizer(text_target=row["target"], truncation=True, max_length=length, return_tensors="pt")["input_ids"]
    inputs = {name: source[name] for name in ("input_ids", "attention_mask")}
    return Said(model(**inputs, labels=target).logits[0], target[0])


def embeddings(model: Any, tokenizer: Any, row: dict[str, Any], length: int) -> Said:
    """Reads the mean state of each of two texts."""
    texts = [tokenizer(row[name], return_tensors="pt") for name in ("sentence1", "sentence2")]
    states = [model(**text).last_hidden_state[0].mean(0) for text in texts]
    return Said(torch.stack(states), torch.tensor(row["score"]))


def ranking(model: Any, tokenizer: Any, row: dict[str, Any], length: int) -> Said:
    """Reads how well each candidate goes with a query."""
    pairs = [
        tokenizer(row["query"], each, truncation=True, max_length=length, return_tensors="pt")
        for each in row["candidates"]
    ]
    return Said(torch.cat([model(**pair).logits for pair in pairs], 1), torch.tensor([row["label"]]))


def chat(model: Any, tokenizer: Any, row: dict[str, Any], length: int) -> Said:
    """Reads the logits of what the assistant says."""
    encoded = tokenizer.apply_chat_template(
        row["messages"], return_dict=True, return_assistant_tokens_mask=True, truncation=True, max_length=512
    )
    ids, told = torch.tensor(encoded["input_ids"]), torch.tensor(encoded["assistant_masks"]).bool()
    return Said(model(ids[None]).logits[0, :-1][told[1:]], ids[1:][told[1:]])


def masked(model: Any, folder: str, settings: dict[str, Any]) -> Iterator[Said]:
    """Reads the masked tokens of windows, which are this package's."""
    from hf_mabprune.config import TaskConfig
    from hf_mabprune.tasks.lookup import build_task

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    task = build_task(TaskConfig(**settings["task"]), tokenizer, model.config, "BertForMaskedLM")
    rows = Dataset.from_parquet(settings["task"]["dataset"]["data_files"]["test"])
    for window in task.encode(rows):
        batch = task.collate([window])
        counted = batch["labels"][0] != -100
        z = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        yield Said(z[0, counted], batch["labels"][0, counted])


def tables(model: Any, folder: str, settings: dict[str, Any]) -> Iterator[Said]:
    """Reads the features that the processor of a table makes of rows."""
    from hf_mabprune.checkpoints.table_processor import TableProcessor

    rows = Dataset.from_parquet(settings["task"]["dataset"]["data_files"]["test"]).to_pandas()
    features = torch.tensor(np.asarray(TableProcessor.from_pretrained(folder)(rows)), dtype=torch.float32)
    for made, right in zip(features, rows["label"], strict=True):
        z = model(features=made[None]).logits
        if model.config.problem_type == "regression":
            yield Said(z[0], torch.tensor([right]))
        else:
            yield Said(z, torch.tensor([model.config.label2id[right]]))


READERS: dict[str, Callable[[Any, Any, dict[str, Any], int], Said]] = {
    "token_classification": words,
    "question_answering": answer,
    "multi_label_classification": labels,
    "regression": labels,
    "seq2seq": sequence,
    "sentence_embedding": embeddings,
    "reranking": ranking,
    "causal_lm": chat,
}
PREPARED: dict[str, Callable[[Any, str, dict[str, Any]], Iterator[Said]]] = {
    "masked_lm": masked,
    "tabular_classification": tables,
    "tabular_regression": tables,
}
