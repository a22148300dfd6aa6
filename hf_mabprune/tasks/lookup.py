"""From a model to its task: which task a model's head is for, and whether head and task fit."""

from dataclasses import fields

from transformers import MODEL_MAPPING, PreTrainedConfig

from hf_mabprune.checkpoints.processors import Processor, is_processor_of, kind_of_processor
from hf_mabprune.config import SAMPLE_TEXT, TaskConfig
from hf_mabprune.errors import kind_of
from hf_mabprune.tasks.base import TASKS, Task

BASE = "AutoModel"  # which loads a model without its head
OWN_SETTINGS = ("max_length", "prefix", "pooling")  # that some tasks have and others do not
POSITIONS = ("calibration_positions", "evaluation_positions")  # of tasks that predict tokens


def build_task(
    config: TaskConfig,
    processor: Processor,
    model_config: PreTrainedConfig,
    architecture: str | None = None,
) -> Task:
    """Builds the task of a run.

    Args:
        config: Task settings of the user.
        processor: Tokenizer, image processor or table processor of the model.
        model_config: Config of the model.
        architecture: Name of the model class; None takes the one that the checkpoint's config names.

    Raises:
        ValueError: If the task is unknown, cannot be told from the model, or does not fit the model's head, the
            processor or a setting, beside what the task itself refuses.
    """
    architecture = architecture or _architecture(model_config)
    name = config.type or task_for_model(architecture or model_config, model_config)
    task = TASKS.get(name)
    if architecture is not None:
        check_head(name, architecture)
    if task.processor_class is None:
        processor = None
    elif not is_processor_of(task.processor_class, processor):
        kind = kind_of_processor(task.processor_class)
        raise ValueError(f"task '{name}' needs the model's {kind}, got {kind_of(processor)}")
    if config.dataset.path == SAMPLE_TEXT and not task.takes_plain_text:
        served = ", ".join(name for name in TASKS.names() if TASKS.get(name).takes_plain_text)
        raise ValueError(
            f"task '{name}' needs data of its own, named in task.dataset; the sample text of hf_mabprune is for "
            f"{served}"
        )
    own = {setting: value for setting in OWN_SETTINGS if (value := getattr(config, setting)) is not None}
    foreign = own.keys() - {field.name for field in fields(task)}
    if not task.predicts_tokens:
        foreign |= {setting for setting in POSITIONS if getattr(config, setting) is not None}
    for setting in sorted(foreign):
        value = getattr(config, setting)
        raise ValueError(f"task.{setting} means nothing to task '{name}', got {value!r}; leave it out")
    columns, metrics = dict(config.columns), list(config.metrics)
    return task(processor=processor, model_config=model_config, columns=columns, metrics=metrics, **own)


def task_for_model(model: PreTrainedConfig | str, model_config: PreTrainedConfig | None = None) -> str:
    """Gives the name of the task that a model is for: "causal_lm" for "LlamaForCausalLM".

    Args:
        model: Name of the model class, or a config, which names the class that its checkpoint was saved from.
        model_config: Config of the model, where `model` is a name; it tells one head from another of the same class,
            such as regression from classification. Without it the head counts as a classifier.

    Raises:
        ValueError: If no task serves that head; the message lists the heads that are served.
    """
    architecture = model if isinstance(model, str) else _architecture(model)
    model_config = model_config if isinstance(model, str) else model
    if architecture is None:
        raise ValueError(f"the model's config names no architecture; set task.type: {', '.join(TASKS.names())}")
    serving = [name for name in TASKS.names() if TASKS.get(name).serves(architecture, model_config)]
    if serving:  # MarianMTModel ends in Model as well

        def told(name: str) -> int:
            return max((len(head) for head in TASKS.get(name).heads if architecture.endswith(head)), default=0)

        return max(serving, key=told)
    served = "; ".join(f"{name} for *{' and *'.join(TASKS.get(name).heads)}" for name in TASKS.names())
    raise ValueError(f"no task is known for the head of {architecture}; use a model with another. Known: {served}")


def check_head(name: str, architecture: str) -> None:
    """Refuses a model whose head a task cannot use.

    Args:
        name: Name of the task.
        architecture: Name of the model class, as its checkpoint has it.

    Raises:
        ValueError: If the model class lacks the head of the task.
    """
    heads = TASKS.get(name).heads
    if not architecture.endswith(heads):
        raise ValueError(
            f"task '{name}' needs a model class that ends in {' or '.join(heads)}, got {architecture}: its head "
            "would be untrained; fine-tune it for the task first, or change task.type"
        )


def loaded_class(name: str, architecture: str, model_config: PreTrainedConfig) -> str:
    """Names the class that a stored model is loaded with: a task without a head takes the model beneath that of the
    checkpoint.

    Args:
        name: Name of the task.
        architecture: Name of the model class, as its checkpoint has it.
        model_config: Config of the model.
    """
    if TASKS.get(name).auto_class != BASE or type(model_config) not in MODEL_MAPPING:
        return architecture
    return str(getattr(MODEL_MAPPING[type(model_config)], "__name__", architecture))


def _architecture(model_config: PreTrainedConfig) -> str | None:
    return next(iter(getattr(model_config, "architectures", None) or []), None)
