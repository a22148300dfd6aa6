"""Which removal rule follows from the settings of a search, and which settings contradict one another."""

import re

import pytest

from hf_mabprune.config import check

BASE = {
    "model": {"name": "m"},
    "task": {"dataset": {"path": "d"}},
    "prune": {"target": {"neurons": 0.5}},
    "output": {"dir": "o"},
}


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({}, {"name": "refit"}),
        ({"search": {"rounds": 1}}, {"name": "refit"}),
        ({"search": {"rule": {"moves": 8}}}, {"name": "refit", "moves": 8}),
        ({"search": {"rounds": 4}}, {"name": "interactions"}),
        ({"search": {"reward": "loss"}}, {"name": "single"}),
        ({"search": {"rule": "interactions"}}, {"name": "interactions"}),
        ({"search": {"rule": {"name": "single"}}}, {"name": "single"}),
        ({"compensation": None}, {"name": "interactions"}),
        ({"compensation": None, "search": {"rule": "single"}}, {"name": "single"}),
        ({"compensation": None, "search": {"pulls_per_arm": 0}}, {"name": "interactions"}),
        ({"compensation": "mask_tuning"}, {"name": "interactions"}),
        ({"compensation": {"name": "least_squares"}, "search": {"pulls_per_arm": 0}}, {"name": "refit"}),
    ],
)
def test_the_rule_follows_from_the_other_settings(settings: dict, rule: dict) -> None:
    search = check(BASE | settings).search
    assert search.rule == rule
    assert check(check(BASE | settings).model_dump()).search == search, "what is resolved stays as it is"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"compensation": None, "search": {"rule": "refit"}}, "refit counts on compensation least_squares, got null"),
        ({"compensation": "mask_tuning", "search": {"rule": "refit"}}, "least_squares, got mask_tuning: set it, or"),
        ({"search": {"rule": "refit", "rounds": 4}}, "refit takes one round, got rounds 4"),
        ({"search": {"rule": "refit", "reward": "loss"}}, "search.rule refit is for the reward kl, got reward loss"),
        ({"search": {"rule": "interactions", "reward": "loss"}}, "rule interactions is for the reward kl, got reward"),
        ({"search": {"pulls_per_arm": 0, "reward": "loss"}}, "search.pulls_per_arm must be a number > 0"),
        ({"compensation": None, "search": {"pulls_per_arm": 0, "rule": "single"}}, "pulls_per_arm must be a"),
        ({"search": {"criterion": "obs", "rule": "single"}}, "a criterion chooses without pulls, so it takes no rule"),
        ({"search": {"criterion": "obs", "rounds": 2}}, "a criterion chooses without pulls, so it takes no rounds"),
        ({"search": {"criterion": {"damping": 1}}}, "criterion needs a name, e.g. {name: kfac_obs}"),
        ({"search": {"refit": True}}, "search.refit is no setting any more: write search.rule: refit"),
        ({"search": {"interactions": False}}, "search.interactions is no setting any more: write search.rule"),
        ({"search": {"moves": 8}}, "search.moves is no setting any more: write search.rule: {name: refit, moves"),
        ({"search": {"label_draws": 8}}, "search.label_draws is no setting any more: write search.rule: {label_draws"),
    ],
)
def test_a_search_that_contradicts_itself_is_refused(settings: dict, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        check(BASE | settings)
    assert "\n" not in str(error.value)
