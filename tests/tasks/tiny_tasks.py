"""Tiny processors, models and data sets, one of each for every registered task."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import PIL.Image
import torch
from datasets import Dataset, Features, Image, Value
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn.functional import cross_entropy
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from hf_mabprune.checkpoints.processors import Processor
from hf_mabprune.config import DatasetConfig, TaskConfig
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import Batch
from hf_mabprune.tasks.lookup import build_task
from tests.seeds import moved
from tests.tasks.tiny_tables import CLASSES, NUMBERS, table_classifier, table_processor, table_regressor

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<s>", "</s>", *"abcdefghij"]
TAGS = ["O", "B-X", "I-X"]


def make_tokenizer(kind: str, **options: Any) -> PreTrainedTokenizerFast:
    """A word tokenizer over the letters a to j.

    `kind`: "pair" frames with [CLS] and [SEP], "plain" adds nothing, "begin" puts <s> in front, "end" </s> behind.
    """
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if kind == "pair":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    if kind == "begin":
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 4)])
    if kind == "end":
        tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 5)])
    names: dict[str, Any] = {"unk_token": "[UNK]", "pad_token": "[PAD]"}
    if kind == "pair":
        inputs = ["input_ids", "token_type_ids", "attention_mask"]
        framing = {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "<s>"}
        names |= {**framing, "model_input_names": inputs}
    else:
        names |= {"bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **(names | options))


def make_processor(kind: str) -> Processor:
    """The image processor of `vit` for "image", that of tables for "table", else the tokenizer of that kind."""
    if kind == "table":
        return table_processor()
    return ViTImageProcessor(size={"height": 8, "width": 8}) if kind == "image" else make_tokenizer(kind)


def bert_config(**options: Any) -> BertConfig:
    """Two layers."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    fixed = {"vocab_size": len(WORDS), "num_labels": 3}
    return BertConfig(max_position_embeddings=32, **(sizes | fixed | options))


def bert(**options: Any) -> BertForSequenceClassification:
    """A random classifier in eval mode."""
    torch.manual_seed(moved(0))
    return BertForSequenceClassification(bert_config(**options)).eval()


def multi_label(**options: Any) -> BertForSequenceClassification:
    """A random classifier whose three labels do not exclude each other, in eval mode."""
    return bert(**({"problem_type": "multi_label_classification"} | options))


def regressor(**options: Any) -> BertForSequenceClassification:
    """A random model with one output, a number, in eval mode."""
    return bert(**({"num_labels": 1} | options))


def chooser(**options: Any) -> BertForMultipleChoice:
    """A random model that chooses among texts, in eval mode."""
    torch.manual_seed(moved(0))
    return BertForMultipleChoice(bert_config(**options)).eval()


def tagger(**options: Any) -> BertForTokenClassification:
    """A random model that marks spans of words, in eval mode."""
    torch.manual_seed(moved(0))
    names = {"id2label": dict(enumerate(TAGS)), "label2id": {tag: number for number, tag in enumerate(TAGS)}}
    return BertForTokenClassification(bert_config(**(names | options))).eval()


def reader(**options: Any) -> BertForQuestionAnswering:
    """A random model that finds answers, in eval mode."""
    torch.manual_seed(moved(0))
    return BertForQuestionAnswering(bert_config(num_labels=2, **options)).eval()


def filler(**options: Any) -> BertForMaskedLM:
    """A random model that fills gaps, in eval mode."""
    torch.manual_seed(moved(0))
    return BertForMaskedLM(bert_config(**options)).eval()


def embedder(**options: Any) -> BertModel:
    """A random encoder without a head, in eval mode; its weights are large enough for outputs to differ."""
    torch.manual_seed(moved(0))
    return BertModel(bert_config(**({"initializer_range": 0.3} | options))).eval()


def llama_config(**options: Any) -> LlamaConfig:
    """Two layers, grouped-query attention."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    fixed = {"vocab_size": len(WORDS), "max_position_embeddings": 32, "num_key_value_heads": 2}
    return LlamaConfig(**(sizes | fixed | options))


def llama(**options: Any) -> LlamaForCausalLM:
    """A random language model in eval mode."""
    torch.manual_seed(moved(0))
    return LlamaForCausalLM(llama_config(**options)).eval()


def vit(**options: Any) -> ViTForImageClassification:
    """A random classifier of 8 x 8 images in eval mode; its output layer is large enough for outputs to differ."""
    torch.manual_seed(moved(0))
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **(sizes | {"num_labels": 3} | options)))
    torch.nn.init.normal_(model.classifier.weight)
    return model.eval()


def t5(**options: Any) -> T5ForConditionalGeneration:
    """A random encoder-decoder in eval mode, two layers each."""
    torch.manual_seed(moved(0))
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    fixed = {"vocab_size": len(WORDS), "pad_token_id": 0, "eos_token_id": 5, "decoder_start_token_id": 0}
    return T5ForConditionalGeneration(T5Config(**(sizes | fixed | options))).eval()


def pictures(count: int, seed: int = 0) -> list[PIL.Image.Image]:
    """Random pictures of 8 to 12 pixels a side, every third of them grey."""
    rng = np.random.default_rng(moved(seed))
    shapes = [(*rng.integers(8, 13, 2), *(() if number % 3 == 2 else (3,))) for number in range(count)]
    return [PIL.Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)) for shape in shapes]


def task_of(model: PreTrainedModel, processor: Processor, **settings: Any) -> Task:
    """The task that belongs to a model in memory."""
    config = TaskConfig(dataset=DatasetConfig(path="in-memory"), **settings)
    return build_task(config, processor, model.config, type(model).__name__)


def cross_entropy_by_hand(logits: torch.Tensor, targets: torch.Tensor) -> list[float]:
    """Mean cross-entropy of each example, one position after the other."""
    means = []
    for rows, classes in zip(logits.double(), targets, strict=True):
        losses = [float(cross_entropy(row, right)) for row, right in zip(rows, classes, strict=True) if right != -100]
        means.append(sum(losses) / len(losses))
    return means


def squared_error_by_hand(logits: torch.Tensor, targets: torch.Tensor) -> list[float]:
    """Mean squared error of each example, one output after the other."""
    return [
        sum((float(output[0]) - float(number)) ** 2 for output, number in zip(outputs, numbers, strict=True))
        / len(numbers)
        for outputs, numbers in zip(logits, targets, strict=True)
    ]


def no_loss(embeddings: torch.Tensor, scores: torch.Tensor) -> list[float]:
    """There is no right embedding."""
    return [0.0] * len(embeddings)


def loss_of(task: Task, model: PreTrainedModel, batch: Batch) -> float:
    """What the model itself says of a batch with labels."""
    return float(model(**task.inputs_with_labels(batch)).loss)


def loss_over_candidates(task: Task, model: PreTrainedModel, batch: Batch) -> float:
    """Cross-entropy of a cross-encoder, which has no such loss of its own."""
    outputs = model(**task.inputs(batch)).logits
    return float(cross_entropy(outputs.reshape(batch.examples, -1), batch["labels"]))


def loss_without_padding(task: Task, model: PreTrainedModel, batch: Batch) -> float:
    """The same, mean over examples one by one, of a model whose own loss counts padding."""
    examples = [batch.rows(slice(row, row + 1)) for row in range(batch.examples)]
    for example in examples:
        length = int(example["attention_mask"].sum())
        example |= {name: tensor[:, :length] for name, tensor in task.inputs(example).items()}
    return float(np.mean([loss_of(task, model, example) for example in examples]))


@dataclass
class Case:
    """What the contract tests need to know of one task."""

    model: Callable[..., PreTrainedModel]
    processor: str
    rows: dict[str, list[Any]]
    settings: dict[str, Any] = field(default_factory=dict)
    losses: Callable[[torch.Tensor, torch.Tensor], list[float]] = cross_entropy_by_hand
    features: Features | None = None
    own_loss: Callable[[Task, PreTrainedModel, Batch], float] = loss_of

    def build(self) -> tuple[Task, PreTrainedModel, Dataset]:
        model = self.model()
        task = task_of(model, make_processor(self.processor), **self.settings)
        return task, model, Dataset.from_dict(self.rows, self.features)


CASES = {
    "sequence_classification": Case(
        bert, "pair", {"sentence": ["a b c d e", "a", "c d", "f g h i j a b", "e e"], "label": [0, 2, 1, 1, 0]}
    ),
    "regression": Case(
        regressor,
        "pair",
        {"sentence": ["a b c d e", "a", "c d", "f g h i j a b", "e e"], "score": [0.5, -2.0, 1.25, 1.0, 0.0]},
        losses=squared_error_by_hand,
    ),
    "multi_label_classification": Case(
        multi_label,
        "pair",
        {
            "sentence": ["a b c d e", "a", "c d", "f g h i j a b", "e e"],
            "labels": [[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0], [1, 0, 0]],
        },
    ),
    "token_classification": Case(
        tagger,
        "pair",
        {
            "tokens": [["a", "b", "c", "d"], ["e"], ["f", "g"], ["h", "i", "j", "a", "b"], ["c", "c"]],
            "ner_tags": [[1, 2, 0, 1], [0], [1, 1], [0, 1, 2, 2, 0], [1, 2]],
        },
    ),
    "question_answering": Case(
        reader,
        "pair",
        {
            "question": ["a b", "c", "d e", "f", "g"],
            "context": ["a b c d e f", "g h c", "d e d e i", "f a b", "h i j g a b c"],
            "answers": [
                {"text": ["c d", "c d e"], "answer_start": [4, 4]},
                {"text": ["h"], "answer_start": [2]},
                {"text": ["i", "i", "e i"], "answer_start": [8, 8, 6]},
                {"text": ["a b"], "answer_start": [2]},
                {"text": ["a b c"], "answer_start": [8]},
            ],
        },
        own_loss=loss_without_padding,
    ),
    "masked_lm": Case(
        filler, "pair", {"text": ["a b c d e f g h i j", "a", "i j a b c", "j i h g", "d e f"]}, {"max_length": 8}
    ),
    "multiple_choice": Case(
        chooser,
        "pair",
        {
            "question": ["a b c", "d", "e f", "g h i", "a a"],
            "choices": [["a", "b c d e"], ["d d d", "e"], ["f g h i j", "b"], ["c", "a b"], ["j j", "i"]],
            "label": [0, 1, 1, 0, 1],
        },
    ),
    "reranking": Case(
        regressor,
        "pair",
        {
            "query": ["a b c", "d", "e f", "g h i", "a a"],
            "candidates": [["a", "b c d e"], ["d d d", "e"], ["f g h i j", "b"], ["c", "a b"], ["j j", "i"]],
            "label": [0, 1, 1, 0, 1],
        },
        {"type": "reranking"},
        own_loss=loss_over_candidates,
    ),
    "causal_lm": Case(
        llama, "plain", {"text": ["a b c d e f g", "", "h i j a\n", "b c d", "e f g h i j a b"]}, {"max_length": 5}
    ),
    "answer": Case(
        llama,
        "plain",
        {"question": ["a b", "c d e f", "g", "h i j", "a"], "answer": ["b a", "g", "h i j a b", "c", "d e"]},
        {"type": "answer"},
    ),
    "sentence_embedding": Case(
        embedder,
        "pair",
        {
            "sentence1": ["a b c d e", "a", "c d", "f g h i j a b", "e e"],
            "sentence2": ["a b", "d e f g h i", "c", "j a b", "e"],
        },
        losses=no_loss,
    ),
    "image_classification": Case(
        vit,
        "image",
        {"image": pictures(5), "label": [0, 2, 1, 1, 0]},
        features=Features({"image": Image(), "label": Value("int64")}),
    ),
    "tabular_classification": Case(table_classifier, "table", CLASSES),
    "tabular_regression": Case(table_regressor, "table", NUMBERS, losses=squared_error_by_hand),
    "seq2seq": Case(
        t5,
        "end",
        {"source": ["a b", "c d e f", "g", "h i j", "a"], "target": ["b a", "g", "h i j a b", "c", "d e"]},
    ),
}
