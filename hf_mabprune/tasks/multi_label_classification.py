"""Classification of a text, or of a pair of texts, where several labels may apply, or none."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import ClassLabel, Dataset
from numpy.typing import NDArray
from transformers import PreTrainedConfig

from hf_mabprune.data.columns import column_of, first_column, full_column, is_list
from hf_mabprune.tasks.base import TASKS
from hf_mabprune.tasks.batch import LABELS, Batch
from hf_mabprune.tasks.class_labels import class_lists, class_names, new_classes
from hf_mabprune.tasks.readout import FEW_CLASSES, Readout, wide_dtype
from hf_mabprune.tasks.text_task import TextTask

MULTI_LABEL = "multi_label_classification"  # in the config of a model, too
USUAL = ("labels", "label")


@dataclass(frozen=True)
class LabelsReadout(Readout):
    """Outputs of labels that do not exclude each other; each counts as a position with two classes, no and yes.

    Attributes:
        outputs: Logits of both, 0 and z, [B, P, 2], whose softmax is 1 - sigmoid(z) and sigmoid(z); [A, B, P, 2] for
            `divergence`, the mean over labels of that of Bernoulli distributions.
        targets: 1 where a label applies, else 0, [B, P].
    """

    def few_outputs(self) -> bool:
        """Tells whether there are few labels, each a coordinate."""
        return self.outputs.shape[-2] <= FEW_CLASSES

    def coordinates(self, dense: Readout, samples: int, seed: int) -> Iterator[torch.Tensor]:
        """Gives u_i = sqrt(p_i (1 - p_i) / P) (z_i - z0_i) for each of P labels, if they are few, [B] each; p_i the
        dense model's probability of the label. Of many, see `Readout.coordinates`."""
        if not self.few_outputs():
            yield from super().coordinates(dense, samples, seed)
            return
        wide = wide_dtype(self.outputs)
        log_p = dense.outputs.detach().to(wide).log_softmax(-1)
        change = (self.outputs[..., 1].to(wide) - log_p[..., 1]) - (self.outputs[..., 0].to(wide) - log_p[..., 0])
        yield from ((log_p.sum(-1) / 2).exp() * change / change.shape[1] ** 0.5).unbind(1)


@TASKS.register(MULTI_LABEL)
@dataclass(kw_only=True)
class MultiLabelClassification(TextTask):
    """Predicts which labels apply to a text. Roles: `text`, `text_pair` (optional) and `label`, a list.

    For heads whose config says `problem_type: multi_label_classification`. A list has 0 or 1 for each label of the
    head, or the labels that apply, by number or name. Every label is predicted by itself, with a probability above one
    half. The loss is the cross-entropy and the KL divergence that of a Bernoulli distribution, mean over the labels.
    `accuracy` is the fraction of labels that are right, `exact_match` that of texts with all of them right.

    Texts are cut at `max_length` tokens, 256 by default or what tokenizer and model can take, and padded on the right
    to the longest of a batch.
    """

    default_metrics: ClassVar[tuple[str, ...]] = ("micro_f1", "macro_f1", "accuracy")
    metric_inputs: ClassVar[dict[str, str]] = {
        "predictions": "predicted",
        "references": "reference",
        "answers": "answers",
        "correct": "correct",
    }
    loss_name: ClassVar[str] = "binary cross-entropy in nats"
    usual_labels: ClassVar[tuple[str, ...]] = USUAL

    @classmethod
    def serves(cls, architecture: str, model_config: PreTrainedConfig | None = None) -> bool:
        """Serves the heads that only the config can tell from other classifiers."""
        return super().serves(architecture, model_config) and is_multi_label(model_config)

    @classmethod
    def new_head(cls, dataset: Dataset, columns: dict[str, str]) -> dict[str, Any]:
        """Gives a head an output for each name, for each entry of lists of 0 and 1, or for each number."""
        column = first_column(dataset, "label", columns, USUAL)
        values = column_of(dataset, column)
        sized = is_list(values.type) and _are_indicators(values, dataset, column, len(values[0]))
        head = {"num_labels": len(values[0])} if sized else new_classes(dataset, column)
        return {**head, "problem_type": MULTI_LABEL}

    @property
    def answer_classes(self) -> int:
        """Counts two, since each label applies or does not."""
        return 2

    def check_head(self) -> None:
        """Refuses other heads, and names of labels that contradict each other."""
        if not is_multi_label(self.model_config):
            raise ValueError(
                f"{MULTI_LABEL} needs a model whose config says problem_type: {MULTI_LABEL}, got "
                f"{self.model_config.problem_type}; set task.type: sequence_classification for classes that exclude "
                "each other"
            )
        class_names(self.model_config)

    def targets(self, dataset: Dataset, split: str) -> None:
        """Gives nothing: a row has no class."""
        return

    def labels(self, dataset: Dataset, column: str, split: str) -> NDArray[np.float32]:
        """Gives 1 for each label that applies to a row and 0 for the others, [N, outputs]; floating, as the loss of
        transformers wants them."""
        values = full_column(dataset, column, split)
        if is_list(values.type) and _are_indicators(values, dataset, column, self.classes):
            flat = pc.list_flatten(values).cast(pa.float32())
            return flat.to_numpy().reshape(-1, self.classes)
        if is_list(values.type) and pa.types.is_floating(values.type.value_type):
            raise ValueError(
                f"split '{split}', column '{column}': labels must be lists of {self.classes} numbers, 0 or 1 for each "
                "label of the head, or of the labels that apply"
            )
        classes, counts = class_lists(dataset, column, split, self.model_config)
        applies = np.zeros((len(counts), self.classes), dtype=np.float32)
        applies[np.arange(len(counts)).repeat(counts), classes] = 1
        return applies

    def read(self, logits: torch.Tensor, batch: Batch) -> Readout:
        """Makes each label a position with two classes, [B, P] -> [B, P, 2]."""
        outputs = torch.stack([torch.zeros_like(logits), logits], dim=-1)
        return LabelsReadout(outputs=outputs, targets=batch[LABELS].long())


def is_multi_label(model_config: PreTrainedConfig | None) -> bool:
    """Tells whether the labels of a head do not exclude each other."""
    return model_config is not None and model_config.problem_type == MULTI_LABEL


def _are_indicators(values: pa.ChunkedArray, dataset: Dataset, column: str, labels: int) -> bool:
    """Tells lists of 0 and 1, one for each label, from lists of labels that apply."""
    flat = pc.list_flatten(values)
    if isinstance(getattr(dataset.features[column], "feature", None), ClassLabel) or flat.null_count:
        return False
    if pa.types.is_boolean(flat.type):
        flat = flat.cast(pa.int8())
    numbers = pa.types.is_integer(flat.type) or pa.types.is_floating(flat.type)
    sized = numbers and bool((pc.list_value_length(values).to_numpy() == labels).all())
    return sized and bool(np.isin(flat.to_numpy(), (0, 1)).all())
