"""Estimates what a run would take before its first pull: pulls, tokens, time and memory."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from hf_mabprune.architectures import architecture_of
from hf_mabprune.checkpoints.offload import offload_of
from hf_mabprune.compensation import dense_reference, refit
from hf_mabprune.criteria import CRITERIA
from hf_mabprune.effects import dense_outputs, gradients
from hf_mabprune.effects.memory import Sizes
from hf_mabprune.effects.pulls import replay
from hf_mabprune.effects.pulls.cost import Cost
from hf_mabprune.progress import over, stage
from hf_mabprune.recovery import memory as training
from hf_mabprune.recovery.batching import batch_order
from hf_mabprune.search.loop import round_budgets
from hf_mabprune.search.rules import Extent, Rule, RuleMemory
from hf_mabprune.search.run import criterion_name, make_rule, pulls_per_arm
from hf_mabprune.selection.plan import Plan
from hf_mabprune.session import Session
from hf_mabprune.tasks.batch import Batch
from hf_mabprune.tasks.head_readout import HeadReadout
from hf_mabprune.tasks.readout import Readout

ARTIFACTS = 6.0  # seconds for figures, latencies, saving and reading back
DATA = 2**27  # bytes of encoded data, figures and scratch memory of the libraries, roughly
BATCHES_A_PULL = 3  # that pulls are made on, for each pull of an arm: the arms in doubt are pulled more often
PLAIN = 2.0  # passes that a pull of a layer takes
MEASURED = 3  # forward passes that the time is estimated from
A_STEP = 4  # passes of a training step over an example: the dense model's, the pruned one's, and two backward
LOOKS = 4  # batches that a round runs whole, in its context and for its last look


@dataclass(frozen=True)
class Forecast:
    """What a run would take on one process, estimated.

    Attributes:
        budgets: Pulls of each round; none where a criterion chooses.
        blind: How many rounds would have neither pulls nor estimates to go by.
        costs: Of the search as it is set, under `search`, and of other ways to choose, by criterion.
        seconds: Of search and report; from a few forward passes, so only a rough guide.
        memory_bytes: Peak, beside what the libraries take.
        cache_bytes: Of it, the caches at their most.
    """

    budgets: list[int]
    blind: int
    costs: dict[str, Cost]
    seconds: float
    memory_bytes: int
    cache_bytes: int


def forecast(session: Session, plans: Sequence[Plan]) -> Forecast:
    """Estimates a run from settings, sizes and a few forward passes.

    Args:
        session: Model, data and arms.
        plans: Plans of all sizes, least removed first.
    """
    settings = session.settings
    rule = None if settings.search.criterion is not None else make_rule(settings)
    budgets = _budgets(session, plans[-1], rule)
    blind = 0 if rule is None or rule.estimates else budgets.count(0)
    trial = _trial_passes(session)
    costs = _costs(session, rule, sum(budgets), trial, len(plans))
    after = trial.seconds * _passes_after(session, len(plans), trial) + ARTIFACTS * len(plans)
    return Forecast(budgets, blind, costs, costs["search"].seconds + after, *_memory(session, rule, trial.readout))


def _budgets(session: Session, plan: Plan, rule: Rule | None) -> list[int]:
    """Pulls of each round; none where a criterion chooses."""
    if rule is None:
        return []
    config = session.settings.search
    total = round(pulls_per_arm(session, rule) * len(session.arms))
    return round_budgets(total, config.rounds or rule.default_rounds, plan, rule.estimates)


class Trial(NamedTuple):
    """What a few forward passes show.

    Attributes:
        seconds: Of a pass over one calibration batch, and of comparing what it gives.
        passing: Part of that which is the pass itself.
        comparing: Part of it that a comparison takes where many are made with the same outputs, as of allocations.
        testing: Passes that one over the test split takes as long as.
        moments: Passes that the second moments of all sites on a batch take as long as.
        readout: What the dense model says on the first batch.
    """

    seconds: float
    passing: float
    comparing: float
    testing: float
    moments: float
    readout: Readout


@stage("trial passes")
@torch.inference_mode()
def _trial_passes(session: Session) -> Trial:
    """Passes over a few calibration batches, and over one of the test split."""
    calibration, test = session.batches["calibration"][:MEASURED], session.batches["test"]
    readout, *_ = _timed(session, calibration[0])  # warms up
    found = [_timed(session, batch) for batch in over(calibration, "trial passes")]
    seconds = float(np.mean([whole for _, _, whole in found]))
    passing = float(np.mean([alone for _, alone, _ in found])) / seconds
    comparing = (1 - passing) / (2 if isinstance(readout, HeadReadout) else 1)  # one product with the head for two
    of_test = _timed(session, test[0])[2] * sum(batch.tokens for batch in test) / test[0].tokens
    return Trial(seconds, passing, comparing, of_test / seconds, _moments(session, passing), readout)


def _timed(session: Session, batch: Batch) -> tuple[Readout, float, float]:
    """What the dense model says on a batch, and seconds until it has said that, and until it is compared as well."""
    device = session.dense.device
    batch, started = batch.to(device), time.perf_counter()
    readout = session.task.readout(session.dense, batch)
    _wait(device)
    said = time.perf_counter()
    readout.divergence(readout)
    _wait(device)
    return readout, said - started, time.perf_counter() - started


def _wait(device: torch.device) -> None:
    """Waits for what a GPU was given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def _costs(session: Session, rule: Rule | None, pulls: int, trial: Trial, sizes: int) -> dict[str, Cost]:
    """Estimated costs of the search, and of criteria alone; a backward pass, in which no weights get gradients, takes
    as long as a forward pass."""
    batches = len(session.batches["calibration"])
    tokens = sum(batch.tokens for batch in session.batches["calibration"])

    def of_criterion(name: str) -> Cost:
        forward, backward = CRITERIA.get(name).passes_on(trial.readout)
        return Cost(0, forward * tokens, backward * tokens, trial.seconds * batches * (forward + backward))

    kinds = session.settings.prune.kinds()
    costs = {name: of_criterion(name) for name in CRITERIA.names() if CRITERIA.get(name).ranks(kinds)}
    alone = session.settings.search.criterion
    if alone is not None:
        return {"search": of_criterion(criterion_name(alone)), **costs}
    assert rule is not None  # which is missing only where a criterion chooses
    architecture = architecture_of(session.dense)
    layers = len(architecture.layers(session.dense))
    depth = {site.name: site.depth for site in architecture.sites(session.dense)}
    shares = [(layers - depth[name]) / layers if name in depth else PLAIN for name in session.arms.site]
    share = float(np.mean(shares))  # of a pass, a pull runs
    rounds = session.settings.search.rounds or rule.default_rounds
    judged = _refit_batches(session)[1] * (trial.passing + trial.comparing)
    extent = Extent(batches, judged, trial.readout, trial.moments, pulls, sizes)
    passes = pulls * share + rounds * min(batches, LOOKS) * (pulls > 0) + rule.passes(extent)
    return {"search": Cost(pulls, passes * tokens / batches, 0.0, trial.seconds * passes), **costs}


def _moments(session: Session, passing: float) -> float:
    """Passes over a batch that take as long as the second moments of all sites on it, by what both multiply."""
    sizes = Sizes.of(session.dense, session.arms, session.task, session.batches["calibration"], session.reserve)
    layers = session.totals["ffn_parameters"] + session.totals["attention_parameters"]
    return passing * sum(columns**2 for columns in sizes.columns) / layers


def _refit_batches(session: Session) -> tuple[float, float]:
    """Batches that refits are made from and judged by, in calibration batches of as many tokens."""
    if not session.compensation:
        return 0.0, 0.0
    typical = np.mean([batch.tokens for batch in session.batches["calibration"]])
    fitted, held_out = (
        sum(batch.tokens for batch in batches) for batches in (session.reference.batches, session.reference.held_out)
    )
    return float(fitted / typical), float(held_out / typical)


def _passes_after(session: Session, sizes: int, trial: Trial) -> float:
    """Counts passes over one batch, or as much work, after a search: of evaluation, refits and recovery.

    Each size, each of its random draws and each criterion beside it is cut, refitted and measured on the test split.
    """
    settings, architecture = session.settings, architecture_of(session.dense)
    typical = float(np.mean([batch.tokens for batch in session.batches["calibration"]]))
    models = sizes * (1 + settings.output.random_seeds + len(settings.output.criteria))
    passes = trial.testing * (1 + models)
    if session.compensation:
        sites = [site for site in architecture.sites(session.dense) if site.kind in session.arms.kinds()]
        fitted, held_out = _refit_batches(session)
        passes += (fitted + held_out) * (len(session.arms.kinds()) + trial.moments)
        shares = trial.passing, trial.comparing
        passes += models * refit.passes(session.compensation, session.dense, len(sites), fitted, held_out, shares)
    if settings.recovery and session.training is not None:
        lengths = session.task.lengths(session.training)
        order = batch_order(lengths, settings.recovery, settings.seed)
        passes += sizes * A_STEP * order.size * float(np.mean(lengths)) / typical
    return passes


def _memory(session: Session, rule: Rule | None, readout: Readout) -> tuple[int, int]:
    """Bytes at the peak beside the libraries' own, and bytes of the caches in it.

    Args:
        readout: What the model says on the first batch.
    """
    batches = session.batches["calibration"]
    sizes = Sizes.of(session.dense, session.arms, session.task, batches, session.reserve)
    forming, outputs = dense_outputs.memory(sizes, readout, batches[0].tokens)
    pulls = 0.0 if rule is None else pulls_per_arm(session, rule)
    recordings = round(min(1.0, BATCHES_A_PULL * pulls / len(batches)) * replay.memory(sizes))
    moments = dense_reference.memory(sizes) if session.compensation else 0
    needed = RuleMemory(preparing=gradients.memory(sizes)) if rule is None else rule.memory(sizes)
    most = session.reserve.limit - session.reserve.room  # that is kept
    above = _states(session, sizes)
    settled = min(most, needed.kept + outputs + moments + needed.refits) + max(
        needed.settling, sizes.together(1), above
    )
    pulled = min(most, needed.kept + outputs + recordings) + needed.pulling
    kept = min(most, needed.kept + outputs + max(recordings, moments + needed.refits))
    recovered = min(most, needed.kept + outputs + moments) + _training(session)  # refits of a search end with it
    return DATA + sizes.weights + forming + max(
        needed.preparing, pulled, sizes.weights + max(settled, recovered)
    ), kept


def _training(session: Session) -> int:
    """Bytes that recovery takes beside both models and what is kept."""
    settings, examples = session.settings.recovery, session.training
    if settings is None or examples is None:
        return 0
    share = settings.batch_size // session.accelerator.num_processes
    longest = int(session.task.lengths(examples).max())
    return training.memory(session.dense, session.task, session.batches["calibration"], settings, share, longest)


def _states(session: Session, sizes: Sizes) -> int:
    """Bytes of what a layer gives on all data of a refit that goes layer by layer: bottom-up, in both models."""
    if not session.compensation:
        return 0
    models = 2 if session.compensation.bottom_up else int(offload_of(session.dense) is not None)
    batches = [*session.reference.batches, *session.reference.held_out]
    return models * sizes.item * sizes.hidden * sum(batch.tokens for batch in batches)
