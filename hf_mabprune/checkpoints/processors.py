"""Loads what makes the inputs of a stored model: its tokenizer, its image processor or its table processor."""

import re
from typing import Any

import transformers
from transformers import BaseImageProcessor, PreTrainedModel, PreTrainedTokenizerBase

from hf_mabprune.checkpoints.stored_files import broken_side_file
from hf_mabprune.checkpoints.table_processor import TableProcessor
from hf_mabprune.errors import in_words

# Makes texts, images or rows of a table into inputs of a model; None where rows are inputs as they are.
Processor = PreTrainedTokenizerBase | BaseImageProcessor | TableProcessor | None
OWN_PROCESSORS = {TableProcessor.__name__: TableProcessor}  # that transformers has not
PROCESSORS = {"input_ids": "AutoTokenizer", "pixel_values": "AutoImageProcessor"}  # by a model's main input
LARGEST_SIDE = 10_000  # pixels


def processor_beside(model: PreTrainedModel, name: str) -> Processor:
    """Reads the tokenizer or processor beside a stored model, by its main input; None where that comes from neither.

    Raises:
        ValueError: If there is none.
    """
    return load_processor(PROCESSORS.get(model.main_input_name), name)


def load_processor(auto_class: str | None, name: str, **origin: Any) -> Processor:
    """Reads what makes the inputs of a stored model; other arguments as those of `load.load_config`.

    Args:
        auto_class: Name of the class that reads it, "AutoTokenizer", "AutoImageProcessor" or "TableProcessor"; None
            where there is none.

    Raises:
        ValueError: If there is none.
    """
    if auto_class is None:
        return None
    kind = kind_of_processor(auto_class)
    remedy = f"save it beside the model ({kind.split()[-1]}.save_pretrained)"
    try:
        reader: Any = OWN_PROCESSORS.get(auto_class) or getattr(transformers, auto_class)
        # Where this is not said, transformers asks on the terminal whether code may run.
        origin = {"trust_remote_code": False, **origin}
        processor: PreTrainedTokenizerBase | BaseImageProcessor | TableProcessor
        processor = reader.from_pretrained(name, **origin)
    except BaseException as error:  # the library behind raises bare Exceptions, and panics that are not even those
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        reason = broken_side_file(name, **origin) or in_words(error)
        raise ValueError(f"the {kind} of {name} cannot be read ({reason}): {remedy}") from error
    if isinstance(processor, TableProcessor):
        return processor
    # Where there are no files, transformers makes a tokenizer from the config that knows no word.
    if isinstance(processor, BaseImageProcessor):
        check_image_sizes(processor, name)
        return processor
    if set(processor.get_vocab()) - set(processor.all_special_tokens):
        return processor
    raise ValueError(f"{name} holds no {kind}: {remedy}")


def check_image_sizes(processor: BaseImageProcessor, name: str) -> None:
    """Refuses an image processor that would make images of any size.

    Raises:
        ValueError: With the size.
    """
    for attribute in ("size", "crop_size", "pad_size"):
        size = getattr(processor, attribute, None)
        sides = {name: side for name, side in dict(size or {}).items() if not name.endswith("pixels")}  # others: areas
        for side in sides.values():
            if side is not None and not 0 < side <= LARGEST_SIDE:
                raise ValueError(
                    f"the image processor of {name} cannot be used: {attribute} must be within 1 and {LARGEST_SIDE} "
                    f"pixels, got {side!r:.60}"
                )


def kind_of_processor(auto_class: str) -> str:
    """Says in words what a class reads: "image processor" for "AutoImageProcessor"."""
    return " ".join(re.findall("[A-Z][a-z]+", auto_class.removeprefix("Auto"))).lower()


def is_processor_of(auto_class: str, processor: Any) -> bool:
    """Tells whether a processor is what a class reads: a tokenizer for "AutoTokenizer"."""
    if (own := type(processor).__name__) in OWN_PROCESSORS or auto_class in OWN_PROCESSORS:
        return own == auto_class
    return isinstance(processor, PreTrainedTokenizerBase) == (auto_class == "AutoTokenizer")
