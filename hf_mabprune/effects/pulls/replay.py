"""Replayed pulls: the numbers of the reference at a fraction of its price.

The pass in the current context is made once a batch, and what its modules returned is kept. A pull then runs only what
its mask changes:

- The layers before the masked one, and the attention before a masked FFN, answer with what the context pass left.
- The masked projection itself is not run: it is linear, so that its output is the recorded one minus the arm's own
  share, W_a h_a, a product over the few columns of the arm. With a stand-in, h_a less its prediction takes the place
  of h_a, since that is what masking takes away.
- Several arms of one site share a forward pass: the batch is repeated, once an arm.
- Where a classifier reads the first position alone, the last layer's FFN runs at that position alone.
- The examples of a batch are sorted by length and run in parts, each cut to its longest.
- On demand, linear layers multiply in half precision, but only what the mask changed: y = y0 + W (x - x0), x0 and y0
  recorded. A product in bfloat16 is off by about 2^-9 of its size; of the difference that is 2^-9 of the effect
  of the mask, of the activations themselves it would be more than that effect.

What runs is the model's own code on the same numbers; results differ from the reference by rounding alone.
Symbols: B examples in a part, T tokens, D hidden, L layers, A arms in a forward pass.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from hf_mabprune.architectures import Site, architecture_of, projection_of
from hf_mabprune.architectures.patching import answer, replaced
from hf_mabprune.architectures.sites import part_at
from hf_mabprune.effects.dense_outputs import Recorded
from hf_mabprune.effects.masking import keep_masks, masked
from hf_mabprune.effects.memory import TOKENS_A_FORWARD, Sizes
from hf_mabprune.effects.pulls.base import Ints, Pulls, observation
from hf_mabprune.effects.rewards import Observation
from hf_mabprune.effects.taps import positions_a_token, tapped
from hf_mabprune.tasks.batch import Batch
from hf_mabprune.tasks.readout import Readout
from hf_mabprune.tasks.sampling import split_by_length

AGREE = 1e-3  # of the largest logit: how far a pass that reads one position may be from one that reads all


@dataclass(frozen=True)
class Recording:
    """One context pass over one part of a batch: what each module returned, and what came out at the end.

    Attributes:
        outputs: What each layer, attention and block of a site returned.
        columns: What of each site's input goes with an arm, [B, T, C], by name of the site.
        linears: Input and output of linear layers, for products in half precision.
        observation: What the model's outputs say of each example.
    """

    outputs: dict[nn.Module, Any]
    columns: dict[str, torch.Tensor]
    linears: dict[nn.Linear, tuple[torch.Tensor, torch.Tensor]]
    observation: Observation


class ReplayPulls(Pulls):
    """One forward pass for several pulls, from the masked site on; one full pass a batch and context.

    Takes the arguments of `Pulls`. Recordings are kept between calls as long as they fit; beyond that they are made
    again, one part of a batch at a time.

    Args:
        products: Precision of the matrix products on what a mask changes; None is the model's own.
    """

    records = True

    def __init__(
        self,
        *args: Any,
        products: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        linears = [module for module in self.model.modules() if isinstance(module, nn.Linear)]
        halved = products is not None and products != self.model.dtype
        self._weights = {module: module.weight.detach().to(products) for module in linears} if halved else {}
        self._pulled = [self.sites[name] for name, _ in self.arms.groups()]
        self._parts = [split_by_length(batch) for batch in self.batches]
        self._recordings: dict[tuple[int, int], Recording] = {}
        self._missed: dict[str, torch.Tensor] | None = None  # by name of the site; None while nothing is recorded
        self._masks: dict[str, torch.Tensor] | None = None  # of the context; None until they are asked for
        reads_first = architecture_of(self.model).classifies_first and self.task.reads_one_position
        self._reads_first = reads_first and self._first_suffices()
        tokens = max(part.tokens for parts in self._parts for part in parts)
        tokens *= positions_a_token(self.model, self.task, self.batches[0])
        fill = TOKENS_A_FORWARD.get(self.model.device.type, TOKENS_A_FORWARD["cpu"])
        self.arms_a_forward = max(1, fill // tokens)

    def set_context(self, kept: Any) -> None:
        super().set_context(kept)
        self._masks = None
        self.forget()

    def forget(self) -> None:
        self._recordings.clear()

    def _observe_arms(
        self, place: tuple[int, int], groups: Sequence[Ints]
    ) -> Iterator[tuple[Observation, Observation, Observation, float]]:
        inputs, recorded = self._inputs(place), self._dense(place)
        dense = observation(recorded, recorded.readout, self.reward.needs)
        if self._masks is None:
            self._masks = keep_masks(self.model, self.arms.kept_units(self.kept))
        missed = {} if self.stand_ins is None else {name: partial(self._miss, name) for name in self.stand_ins}
        with (
            tapped(self.model, missed),  # before the masks of the context, which take away what stand-ins are made of
            masked(self.model, masks=self._masks, stand_ins=None if self.kept.all() else self.stand_ins),
        ):
            recording = self._record(place, inputs, recorded)
            for group in groups:
                pulled = observation(recorded, self._replay_or_less(inputs, group, recording), self.reward.needs)
                layers = len(self.layers) - int(self._depth[group[0]])  # that run, the masked one among them
                tokens = inputs.tokens * layers / len(self.layers)
                yield dense, recording.observation, pulled, tokens

    def _record(self, place: tuple[int, int], inputs: Batch, recorded: Recorded) -> Recording:
        """Makes the context pass of a part of a batch, unless it is kept; the context's masks are on."""
        if place in self._recordings:
            return self._recordings[place]
        outputs: dict[nn.Module, Any] = {}
        columns: dict[str, torch.Tensor] = {}
        linears: dict[nn.Linear, tuple[torch.Tensor, torch.Tensor]] = {}

        def keep(name: str, hidden: torch.Tensor) -> torch.Tensor:
            columns[name] = hidden
            return hidden

        taps = {site.name: partial(keep, site.name) for site in self._pulled if site.kind != "expert"}
        self._missed = {}
        with tapped(self.model, taps), ExitStack() as hooks:  # after the masks of the context, whose work they see
            for block in self._watched():
                hooks.callback(block.register_forward_hook(lambda m, _, output: outputs.update({m: output})).remove)
            for module in self._weights:
                both = lambda module, arguments, output: linears.update({module: (arguments[0], output)})  # noqa: E731
                hooks.callback(module.register_forward_hook(both).remove)
            readout = self.task.readout(self.model, inputs)
        columns.update(self._missed)
        self._missed = None
        size = _bytes([*outputs.values(), *columns.values(), *linears.values()])
        recording = Recording(outputs, columns, linears, observation(recorded, readout, self.reward.needs))
        if self.outputs.reserve.take_for(recording, size):
            self._recordings[place] = recording
        return recording

    def _miss(self, name: str, hidden: torch.Tensor) -> torch.Tensor:
        """A tap that notes, while a context pass is recorded, what the stand-ins of a site miss."""
        if self._missed is not None and self.stand_ins is not None:
            self._missed[name] = self.stand_ins[name].missed(hidden)
        return hidden

    def _replay_or_less(self, inputs: Batch, arms: Ints, recording: Recording) -> Readout:
        """Runs `_replay`, with fewer arms a forward pass where memory does not reach."""
        size = min(self.arms_a_forward, len(arms))
        while True:
            try:
                parts = [self._replay(inputs, arms[at : at + size], recording) for at in range(0, len(arms), size)]
                outputs = parts[0].outputs if len(parts) == 1 else torch.cat([part.outputs for part in parts])
                return replace(parts[0], outputs=outputs)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if size == 1 or not _is_out_of_memory(error):
                    raise
            size = self.arms_a_forward = size // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _watched(self) -> list[nn.Module]:
        """Lists the modules whose outputs are recorded: all that `_answers` lets answer, and no other."""
        paths = [layer.path for layer in self.layers]
        for site in self._pulled:
            around = (*site.spec.feeds, *self._before(site))
            paths += [*(site.prefix + path for path in around), *([] if site.kind == "expert" else [site.block])]
        if self._reads_first:
            paths.append(self._last_attention)
        return [self.model.base_model.get_submodule(path) for path in dict.fromkeys(paths)]

    def _before(self, site: Site) -> list[str]:
        """Lists what runs before a site in its layer, of all that layers of its stack have."""
        return [path for path in site.spec.before if part_at(self.model.base_model, site.prefix + path) is not None]

    def _replay(self, inputs: Batch, arms: Ints, recording: Recording) -> Readout:
        """Runs the context pass again, with one arm masked in each of its copies, [A * B, ...], from their site on.

        Returns:
            Logits [A, B, P, C], and targets [B, P].
        """
        site = self.sites[str(self.arms.site[arms[0]])]
        forwards: dict[nn.Module, Callable[..., Any]] = {
            module: partial(_by_difference, self._weights[module], *recorded, len(arms))
            for module, recorded in recording.linears.items()
        }
        answers = self._answers(site, arms, recording)
        forwards |= {block: partial(answer, output) for block, output in answers.items()}
        masks = {site.name: self._routes(arms, inputs)} if site.kind == "expert" else {}
        with ExitStack() as stack:
            stack.enter_context(replaced(forwards))
            stack.enter_context(masked(self.model, masks=masks))
            if self._reads_first:
                stack.enter_context(self._first_position_alone())
            readout = self.task.readout(self.model, inputs.repeated(len(arms)))
        outputs = readout.outputs.unflatten(0, (len(arms), -1))
        return replace(readout, outputs=outputs, targets=readout.targets[: outputs.shape[1]])

    def _answers(self, site: Site, arms: Ints, recording: Recording) -> dict[nn.Module, Any]:
        """Says what modules return that are not run: those that no mask at the arms' site changes, and its block.

        What a router would send elsewhere is no difference of what was recorded: there the block is run.
        """
        base, answers = self.model.base_model, {}
        for layer, following in pairwise(self.layers[: site.depth + 1]):
            module = base.get_submodule(layer.path)
            # A layer before another that answers, too, hands its answer to that alone: one copy will do.
            alone = following.depth < site.depth and following.stack is layer.stack and not layer.stack.read_aside
            answers[module] = recording.outputs[module] if alone else _repeated(recording.outputs[module], len(arms))
        for path in site.spec.feeds:
            feed = base.get_submodule(site.prefix + path)
            answers[feed] = recording.outputs[feed]
        for path in self._before(site):
            module = base.get_submodule(site.prefix + path)
            answers[module] = _repeated(recording.outputs[module], len(arms))
        if site.kind != "expert":
            answers[base.get_submodule(site.block)] = self._without(site, arms, recording)
        return answers

    def _without(self, site: Site, arms: Ints, recording: Recording) -> Any:
        """Gives what the block of a site returns without each of the arms, [A * B, T, D]: less the arm's own share.

        y - W_a h_a for y = W h + b, W_a [D, columns of the arm]; the bias stays, as it does when an arm is cut out.
        """
        block, weight = self.model.base_model.get_submodule(site.block), projection_of(self.model, site).weight
        recorded, columns = recording.outputs[block], recording.columns[site.name]
        output = _first(recorded)
        flat = output.ndim == 2  # examples and positions as one
        output = output.unflatten(0, columns.shape[:2]) if flat else output
        if self._reads_first and site.depth == len(self.layers) - 1:
            output, columns = output[:, :1], columns[:, :1]
        changed = output.new_empty(len(arms), *output.shape)
        for number, arm in enumerate(arms):
            start, stop = (int(bound) * site.unit_size for bound in (self.arms.start[arm], self.arms.stop[arm]))
            torch.sub(output, columns[..., start:stop] @ weight[:, start:stop].T, out=changed[number])
        changed = changed.flatten(0, 2 if flat else 1)
        return (changed, *_repeated(recorded, len(arms))[1:]) if isinstance(recorded, tuple) else changed

    def _routes(self, arms: Ints, inputs: Batch) -> torch.Tensor:
        """Masks of a router, [A * B * S, E]: of the copy of each arm, all experts but that one."""
        site = self.sites[str(self.arms.site[arms[0]])]
        masks = torch.ones(len(arms), site.units, device=self.model.device)
        masks[torch.arange(len(arms)), torch.as_tensor(self.arms.start[arms])] = 0
        return masks.repeat_interleave(inputs.examples * inputs.sequences, dim=0)

    @cached_property
    def _last_attention(self) -> str:
        """Path of what runs before the last layer's last site, and mixes positions."""
        last = list(self.sites.values())[-1]
        return last.prefix + self._before(last)[-1]

    def _first_suffices(self) -> bool:
        """Tries whether the last layer's FFN at the first position alone gives the model's logits, on one example."""
        inputs = self._parts[0][0].rows(slice(1))
        with torch.inference_mode():
            everywhere = self.task.readout(self.model, inputs).outputs
            with self._first_position_alone():
                alone = self.task.readout(self.model, inputs).outputs
        return bool((everywhere - alone).abs().max() <= AGREE * everywhere.abs().max())

    @contextmanager
    def _first_position_alone(self) -> Iterator[None]:
        """Shows what follows the attention of the last layer the first position alone, [B, 1, D]."""

        def cut(module: nn.Module, arguments: Any, output: Any) -> Any:
            return (output[0][:, :1], *output[1:]) if isinstance(output, tuple) else output[:, :1]

        handle = self.model.base_model.get_submodule(self._last_attention).register_forward_hook(cut)
        try:
            yield
        finally:
            handle.remove()


def _by_difference(
    weight: torch.Tensor, before: torch.Tensor, after: torch.Tensor, copies: int, changed: torch.Tensor
) -> torch.Tensor:
    """Runs a linear layer on inputs x near recorded ones: y0 + W (x - x0), the product in the weight's precision.

    Each copy's difference is scaled to a largest entry in [1, 2), which the range of half precision holds: float16
    ends at 6e-5, and effects of single neurons are smaller. By a power of two, so that scaling itself rounds nothing.

    Args:
        weight: W, [C', C], in half precision.
        before, after: x0 [B, ..., C] and y0 [B, ..., C'], recorded input and output.
        copies: A, how often the recorded examples are repeated.
        changed: x, [A * B, ..., C]; may hold the first position alone.

    Returns:
        [A * B, ..., C'], in the precision of `changed`.
    """
    if before.ndim > 2:
        before, after = before[:, : changed.shape[1]], after[:, : changed.shape[1]]
    difference = changed.unflatten(0, (copies, -1)) - before
    largest = difference.abs().flatten(1).amax(1).clamp(min=torch.finfo(torch.float32).tiny)
    scale = torch.exp2(largest.log2().floor()).view(-1, *[1] * before.ndim)
    product = linear((difference / scale).to(weight.dtype), weight)
    return torch.addcmul(after, product.to(after.dtype), scale).flatten(0, 1)


def _first(output: Any) -> torch.Tensor:
    """Picks the hidden state out of what a block returned."""
    return output[0] if isinstance(output, tuple) else output


def _repeated(output: Any, times: int) -> Any:
    """Repeats what a block returned along the examples: the hidden state, and all else with one entry an example."""
    if times == 1:
        return output
    if not isinstance(output, tuple):
        return output.repeat(times, *[1] * (output.ndim - 1))
    fits = [torch.is_tensor(part) and part.ndim > 1 and len(part) == len(output[0]) for part in output]
    return tuple(_repeated(part, times) if fit else part for part, fit in zip(output, fits, strict=True))


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _bytes(outputs: Sequence[Any]) -> int:
    """Counts the bytes of the tensors that blocks returned, each storage once."""
    tensors = [part for output in outputs for part in (output if isinstance(output, tuple) else (output,))]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if torch.is_tensor(t)}
    return sum(storages.values())


def memory(sizes: Sizes) -> int:
    """Estimates the bytes of recordings, were there no limit: three hidden states a layer, and what sites see."""
    return sizes.item * sizes.tokens * (3 * sizes.layers * sizes.hidden + sum(sizes.columns))
