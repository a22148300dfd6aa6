"""What a caller has set for the whole process: a run works without it, and gives it back as it was."""

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
import transformers
from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from torch import nn

PRECISION = torch.float32  # of new tensors, where nothing else is said


@contextmanager
def undisturbed() -> Iterator[None]:
    """Runs what is inside with torch as it comes, and undoes what it does to the process, errors or not.

    Inside, gradients may be taken, nothing is cast by itself, and new tensors are float32 on the CPU: whatever the
    caller has switched on, the result is the same. Outside again, random states, modes, defaults, the numbers of
    threads and what libraries may print are as they were.
    """
    with ExitStack() as stack:
        stack.callback(_random_states())
        stack.callback(_settings())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        torch.set_default_dtype(PRECISION)
        yield


def check_usable(model: nn.Module) -> None:
    """Raises ValueError for a model that takes no gradients whatever is done, since it was made in inference mode."""
    made = next((name for name, weight in model.named_parameters() if weight.is_inference()), None)
    if made:
        raise ValueError(
            f"the weights of the model ({made} and others) were made in torch.inference_mode, which no gradient can "
            "pass through: load the model outside of it, or under torch.no_grad"
        )


def _random_states() -> Callable[[], None]:
    """Takes the states of all random generators down, and gives what puts them back."""
    python, numpy, torch_cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    on_mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None

    def put_back() -> None:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(torch_cpu)
        if on_gpus:
            torch.cuda.set_rng_state_all(on_gpus)
        if on_mps is not None:
            torch.mps.set_rng_state(on_mps)

    return put_back


def _settings() -> Callable[[], None]:
    """Takes down what is set for the whole process, and gives what puts it back."""
    precision, threads, deterministic = torch.get_default_dtype(), torch.get_num_threads(), _determinism()
    verbosity, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    data_bars = not are_progress_bars_disabled()

    def put_back() -> None:
        torch.set_default_dtype(precision)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        _set_determinism(*deterministic)
        transformers.logging.set_verbosity(verbosity)
        (transformers.logging.enable_progress_bar if bars else transformers.logging.disable_progress_bar)()
        (enable_progress_bars if data_bars else disable_progress_bars)()

    return put_back


def _determinism() -> tuple[bool, bool, bool, bool]:
    """Whether algorithms must be deterministic, with a warning alone; and what cuDNN is told."""
    cudnn = torch.backends.cudnn
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    return torch.are_deterministic_algorithms_enabled(), warns, cudnn.deterministic, cudnn.benchmark


def _set_determinism(algorithms: bool, warns: bool, cudnn: bool, benchmark: bool) -> None:
    torch.use_deterministic_algorithms(algorithms, warn_only=warns)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn, benchmark
