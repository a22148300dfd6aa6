"""How long one pass of a model takes, in the engine, the phase and the precision that a target names.

Symbols: B sequences; T tokens of each.
"""

import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from hf_mabprune.checkpoints.offload import offload_of
from hf_mabprune.checkpoints.processors import Processor
from hf_mabprune.config import LatencyTarget
from hf_mabprune.exports import EXPORTS
from hf_mabprune.runtime import threads

WARM = 2  # first passes, whose times do not count
FEWEST, MOST = 11, 101  # pairs of a table
SECONDS = 1.0  # that are spent on more than the fewest
Pass = Callable[[], float]  # runs once, and gives the milliseconds


def check_timing(model: PreTrainedModel, asked: LatencyTarget) -> None:
    """Refuses what cannot be timed, before anything is.

    Raises:
        ValueError: For a model whose layers have to be brought in, an encoder-decoder, tokens one by one of what is no
            decoder, or what onnxruntime does not get.
    """
    kind = model.config.model_type
    if offload_of(model) is not None:
        raise ValueError("target.latency times whole passes, and model.device_map brings layers in: leave one out")
    if model.config.is_encoder_decoder:
        raise ValueError(f"target.latency is for encoders and decoders, and {kind} is both: set target.macs instead")
    if asked.phase == "decode" and not (model.can_generate() and model.main_input_name == "input_ids"):
        raise ValueError(f"target.latency.phase decode is for decoders, and {kind} is none: leave it out")
    if asked.length is not None and model.main_input_name != "input_ids":
        raise ValueError(f"target.latency.length is for token ids, and {kind} reads {model.main_input_name}")
    if asked.engine == "onnxruntime":
        if asked.dtype != "float32" or model.device.type != "cpu":
            raise ValueError(
                f"target.latency.engine onnxruntime is timed in float32 on the CPU, got {asked.dtype} on "
                f"{model.device.type}: leave dtype out, or time engine torch"
            )
        if model.can_generate():
            raise ValueError(f"target.latency.engine onnxruntime is for text encoders, got {kind}: time engine torch")
        destination = EXPORTS.get("onnx")
        destination.check_installed("onnx")
        destination().check(model)


@contextmanager
def passes(
    model: PreTrainedModel, asked: LatencyTarget, example: Mapping[str, torch.Tensor], processor: Processor
) -> Iterator[Pass]:
    """Makes a model ready to be timed, for as long as the context is open.

    Args:
        model: Dense or cut model.
        asked: Engine, phase, precision, B and T.
        example: Inputs of one example, whose length is T where that is left out.
        processor: Tokenizer or processor, which names the inputs of an export.
    """
    inputs, dtype = _inputs(model, asked, example), getattr(torch, asked.dtype)
    model = model if model.dtype == dtype else copy.deepcopy(model).to(dtype)
    if asked.engine == "onnxruntime":
        with _exported(model, inputs, processor) as run:
            yield _timed(run, model.device)
        return
    cast = {name: each.to(dtype) if each.is_floating_point() else each for name, each in inputs.items()}
    last = {"logits_to_keep": 1} if "logits_to_keep" in signature(model.forward).parameters else {}
    if asked.phase == "decode":
        yield _decoding(model, cast, last)
    else:
        yield _timed(lambda: model(**cast, **last), model.device)


def undisturbed(first: Pass, second: Pass) -> tuple[float, float]:
    """Times two models in turns, for a second or `MOST` pairs, whichever is less, and at least for `FEWEST` pairs.

    Returns:
        Milliseconds of each: the lower quartile, for what other programs do only ever makes a pass longer.
    """
    taken, until = _pairs(first, second, FEWEST), time.perf_counter() + SECONDS
    while len(taken) < MOST and time.perf_counter() < until:
        taken += _pairs(first, second, 1, warm=0)
    ones, others = np.quantile(taken, 0.25, axis=0)
    return float(ones), float(others)


def ratio(first: Pass, second: Pass, pairs: int) -> float:
    """Says how long the second takes to the first: median of so many pairs of neighbouring passes."""
    return statistics.median(b / a for a, b in _pairs(first, second, pairs))


@torch.inference_mode()
def _pairs(first: Pass, second: Pass, pairs: int, warm: int = WARM) -> list[tuple[float, float]]:
    """Times two models in turns, so that noise hits them alike: milliseconds of both, pair by pair."""
    with threads.fixed():
        return [(first(), second()) for _ in range(pairs + warm)][warm:]


def _inputs(
    model: PreTrainedModel, asked: LatencyTarget, example: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Makes B examples of T tokens of one, nothing of them padding; of images and sounds B copies."""
    made = {}
    for name, value in example.items():
        if model.main_input_name == "input_ids" and asked.length is not None and value.ndim > 1:
            times = -(-asked.length // value.shape[-1])
            value = value.repeat(*[1] * (value.ndim - 1), times)[..., : asked.length]
        made[name] = value.repeat(asked.batch, *[1] * (value.ndim - 1)).to(model.device)
    return made


def _timed(run: Callable[[], object], device: torch.device) -> Pass:
    """Times a pass, to its end on a GPU."""

    def once() -> float:
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return 1000 * (time.perf_counter() - started)

    return once


def _decoding(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor], last: Mapping[str, int]) -> Pass:
    """Times the pass of one more token behind T; each starts from what was kept of those T."""
    with torch.inference_mode():
        kept = model(**inputs, **last, use_cache=True).past_key_values
    ids = inputs["input_ids"][:, -1:]
    mask = torch.ones(len(ids), inputs["input_ids"].shape[1] + 1, dtype=torch.long, device=ids.device)

    def once() -> float:
        past = copy.deepcopy(kept)
        return _timed(
            lambda: model(input_ids=ids, attention_mask=mask, past_key_values=past, use_cache=True, **last),
            model.device,
        )()

    return once


@contextmanager
def _exported(
    model: PreTrainedModel, inputs: Mapping[str, torch.Tensor], processor: Processor
) -> Iterator[Callable[[], Sequence[object]]]:
    """Exports a model for onnxruntime, which runs it with as many threads as torch has."""
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        EXPORTS.get("onnx")().write(model, processor, Path(folder))
        file = next(Path(folder).glob("*.onnx"))
        session = InferenceSession(os.fspath(file), options, providers=["CPUExecutionProvider"])
        names = [each.name for each in session.get_inputs()]
        given = {name: inputs[name].cpu().numpy() for name in names}
        yield lambda: session.run(None, given)
