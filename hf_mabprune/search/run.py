"""The search stage: from a session and the plans of its sizes to an order of removal.

Arms are found by pulls, a policy and a removal rule; or, where the settings name one, by a criterion alone.
"""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch

from hf_mabprune.architectures import architecture_of
from hf_mabprune.arms import LAYER
from hf_mabprune.config import PruneConfig
from hf_mabprune.criteria import CRITERIA, CalibrationStatistics, Criterion
from hf_mabprune.effects.pulls import Pulls
from hf_mabprune.effects.pulls.cost import Cost
from hf_mabprune.effects.pulls.reference import ReferencePulls
from hf_mabprune.effects.pulls.replay import ReplayPulls
from hf_mabprune.policies import POLICIES, Policy
from hf_mabprune.progress import stage
from hf_mabprune.registry import check_options
from hf_mabprune.runtime import signals
from hf_mabprune.runtime.resume import RunState
from hf_mabprune.search.loop import Search
from hf_mabprune.search.progress import SearchProgress
from hf_mabprune.search.result import SearchResult
from hf_mabprune.search.rules import RULES, Rule
from hf_mabprune.selection.plan import Plan
from hf_mabprune.session import Session


def search(session: Session, plans: Sequence[Plan], run: RunState | None = None) -> tuple[SearchResult, Cost]:
    """Finds the arms that go, and says what that cost.

    Args:
        session: Model, data and arms.
        plans: Plans of all sizes, least removed first; the search follows the last.
        run: Where the search is kept after every round, and taken up from; None keeps nothing.

    Returns:
        The finished search, whose order of removal serves every size, and its cost.
    """
    if session.settings.search.criterion is not None:
        return by_criterion(session, plans, session.settings.search.criterion)
    accelerator = session.accelerator
    under_way = make_search(session, plans)
    restored = run is not None and run.restore(under_way)
    if restored:
        accelerator.print(f"resumed in round {under_way.number}, after {under_way.result.pulls.sum():,} pulls")
    if not under_way.ended:
        prepare(session, under_way, paid=restored)
    shown, made = SearchProgress(under_way, session.settings), int(under_way.result.pulls.sum())
    with stage("search", under_way.planned, "pulls", made) as work, signals.deferred():
        for done in under_way.run():
            shown.show(work)
            if done:
                accelerator.print(shown.line(done))
                accelerator.log({f"search/{name}": value for name, value in asdict(done).items()}, step=done.number)
            if run:
                run.keep(under_way, round_ended=done is not None)
    if run:
        run.ended(under_way)
    return under_way.finished(), under_way.pulls.cost


def make_search(session: Session, plans: Sequence[Plan]) -> Search:
    """Makes the search of a session, which is not prepared yet."""
    settings = session.settings
    rule = make_rule(settings)
    # What a mask changes in one run of a layer it has changed in those before: nothing is left to be replayed.
    plainly = architecture_of(session.dense).shares_layers(session.dense) or LAYER in session.arms.kinds()
    engine: Callable[..., Pulls] = ReferencePulls if plainly else partial(ReplayPulls, products=half_of(settings))
    pulls = engine(
        session.dense,
        session.arms,
        session.task,
        session.batches["calibration"],
        settings.search.reward,
        session.accelerator,
        outputs=session.outputs,
    )
    policy = make_policy(settings, len(session.arms))
    config = settings.search.model_copy(update={"pulls_per_arm": pulls_per_arm(session, rule)})
    return Search(pulls, policy, plans, config, rule, settings.task.max_broken_batches)


@stage("statistics")
def prepare(session: Session, search: Search, paid: bool = False) -> None:
    """Lets the rule of a search find out what it needs to know of the model, before the first round or the next one.

    Args:
        paid: Whether that is in the cost already, as in one that is taken up again.
    """
    rule, pulls = search.rule, search.pulls
    rule.prepare(session)
    pulls.stand_ins = rule.stand_ins
    if not paid:
        pulls.cost += rule.cost


def pulls_per_arm(session: Session, rule: Rule) -> float:
    """Gives the budget of a search in pulls an arm, decided by the rule where the settings leave it out."""
    asked = session.settings.search.pulls_per_arm
    return rule.default_pulls(session) if asked is None else asked


@stage("statistics")
def by_criterion(session: Session, plans: Sequence[Plan], given: str | dict[str, Any]) -> tuple[SearchResult, Cost]:
    """Lets a criterion choose what goes, without a pull: the cheap way.

    Args:
        session: Model, data and arms.
        plans: Plans of all sizes, least removed first; the criterion follows the last, and smaller ones its order.
        given: Name of the criterion, or a mapping with its name and options.

    Returns:
        As `search`: one round without pulls; scores are minus those of the criterion.
    """
    settings, started = session.settings, time.perf_counter()
    criterion = make_criterion(given)
    batches = session.batches["calibration"]
    data = session.dense, session.arms, session.task, batches
    statistics = CalibrationStatistics(*data, settings.seed, session.reserve)
    kept, order = criterion.choose(statistics, plans[-1])
    result = SearchResult(
        kept=kept,
        order=order,
        scores=-criterion.scored(statistics),
        pulls=np.zeros(len(kept), dtype=np.int64),
        removed_round=(~kept).astype(np.int64),
        stopped_because=f"criterion {criterion_name(given)}, no pulls",
    )
    tokens = sum(batch.tokens for batch in batches)
    first = batches[0].to(session.dense.device)
    forward, backward = criterion.passes_on(session.dense_on("calibration", 0, first))
    return result, Cost(0, forward * tokens, backward * tokens, time.perf_counter() - started)


def criterion_name(given: str | dict[str, Any]) -> str:
    """Gives the name of a criterion that settings name, with options or without."""
    return str(given["name"]) if isinstance(given, dict) else given


def make_criterion(given: str | dict[str, Any], kinds: Collection[str] = ()) -> Criterion:
    """Makes a criterion that settings name, with its options checked.

    Args:
        given: Name of the criterion, or a mapping with its name and options.
        kinds: Kinds of arms that it has to rank.

    Raises:
        ValueError: If there is no such criterion, an option is unknown or wrong, or it cannot rank such arms.
    """
    options = dict(given) if isinstance(given, dict) else {}
    options.pop("name", None)
    name = criterion_name(given)
    criterion = CRITERIA.get(name)
    if not criterion.ranks(kinds):
        ranked = " and ".join(criterion.kinds)
        raise ValueError(
            f"criterion {name} ranks arms of kind {ranked} alone: name them in prune.target, e.g. "
            f"{{{criterion.kinds[0]}s: 0.25}}"
        )
    return criterion(**check_options("criterion", name, criterion, options))


def half_of(settings: PruneConfig) -> torch.dtype | None:
    """Gives the precision of the products of a pull, where it is not the model's own."""
    return None if settings.search.products == "auto" else getattr(torch, settings.search.products)


def make_policy(settings: PruneConfig, arms: int) -> Policy:
    """Makes the policy that the settings name, with its options checked.

    Raises:
        ValueError: If there is no such policy, or an option is unknown or wrong.
    """
    options = dict(settings.search.policy)
    name = options.pop("name", None)
    if name is None:
        raise ValueError(f"search.policy needs a name. Known: {', '.join(POLICIES.names())}")
    policy = POLICIES.get(name)
    return policy(arms=arms, seed=settings.seed, **check_options("policy", name, policy, options))


def make_rule(settings: PruneConfig) -> Rule:
    """Makes the removal rule that the settings name, or that follows from them, with its options checked.

    Raises:
        ValueError: If there is no such rule, or an option is unknown or wrong.
    """
    options = dict(settings.resolved_rule())
    name = options.pop("name")
    rule = RULES.get(name)
    return rule(**check_options("rule", name, rule, options))
