"""The table of families: what was shown fits what is declared, and what is declared is read anew."""

import pytest
from transformers import AutoConfig

from hf_mabprune.architectures import ARCHITECTURES, Architecture, architecture_of
from hf_mabprune.architectures.shown import LAYOUTS, FamilyRow, Results, Shown, ShownOfType, family_rows, read_results
from hf_mabprune.architectures.sites import Stack, gated_ffn, grouped_heads
from tests.architectures.variants import TYPES, model_of, sites_of
from tests.tiny_models import heads_of


def rows_with(model_type: str, **shown: Shown) -> dict[str, FamilyRow]:
    """The rows of a type of which something was shown: `KIND LAYOUT` -> row."""
    places = {place.replace("__", " "): row for place, row in shown.items()}
    rows = family_rows(model_type, Results(types={model_type: ShownOfType(rows=places)}))
    return {f"{row.kind} {row.layout}": row for row in rows}


def test_what_was_shown_is_of_every_type_and_of_no_other() -> None:
    results = read_results()
    assert sorted(results.types) == TYPES, "`make families` makes the table anew"
    assert {*results.versions} == {"transformers", "torch"}


@pytest.mark.parametrize("model_type", TYPES)
def test_every_kind_of_units_is_shown_in_both_layouts_or_there_is_a_reason(model_type: str) -> None:
    results = read_results()
    rows, own = family_rows(model_type, results), results.types[model_type]
    model = model_of(model_type)
    kinds = {site.kind for site in sites_of(model)} | ({"layer"} - architecture_of(model).kept_whole(model).keys())
    assert {row.kind for row in rows} >= kinds
    assert {place.split()[0] for place in own.rows} == kinds, "`make families` makes the table anew"
    for row in rows:
        assert "equivalence" in row.checks if row.state == "shown" else row.state == "cannot" and row.reason
        assert row.kind in kinds or row.state == "cannot"
    assert tuple(own.classes) == heads_of(model_type)


def test_what_a_declaration_keeps_whole_cannot_be_had_whatever_was_shown() -> None:
    rows = rows_with("olmo2", head__per_layer=Shown(checks=["equivalence"]))
    reason = "q_norm and k_norm run over all heads together"
    for layout in LAYOUTS:
        assert rows[f"head {layout}"] == FamilyRow("olmo2", "head", layout, "cannot", reason=reason)
        assert rows[f"neuron {layout}"].state == "not tested"


def test_what_only_some_configs_keep_whole_is_said_too() -> None:
    row = rows_with("stablelm", head__per_layer=Shown(checks=["equivalence"]))["head per_layer"]
    norms = "each head has a norm that is a module of its own (qk_layernorm)"
    assert (row.state, row.reason) == ("shown", f"with some configs not at all: {norms}")
    assert not any(row.reason for row in rows_with("bart").values()), "a decoder alone has heads as well"


def test_a_check_that_failed_is_not_hidden_by_those_that_passed() -> None:
    row = rows_with("bert", head__per_layer=Shown(checks=["pulls"], failed=["equivalence"]))["head per_layer"]
    assert (row.state, row.reason) == ("failed", "failed: equivalence")


@pytest.mark.parametrize(
    ("counts", "numbers", "state"),
    [
        ([1, 2, 3], "any", "shown"),
        ([1, 2], "divisors of the hidden size", "shown"),
        ([2], "2 of 4", "shown"),
        ([], "", "cannot"),
        (None, "", "shown"),
    ],
)
def test_numbers_that_a_stock_config_says_in_words(counts: list[int] | None, numbers: str, state: str) -> None:
    shown = Shown(checks=["equivalence"], counts=counts, units=4, hidden=32, reason="it says no other")
    row = rows_with("bert", head__uniform=shown)["head uniform"]
    assert (row.numbers, row.state, row.reason) == (numbers, state, "it says no other")


def test_types_that_transformers_does_not_know_are_listed_by_what_they_declare() -> None:
    class Plugin(Architecture):
        stacks = (Stack("layers", (grouped_heads("attention", when=lambda _: False, reason="one"), gated_ffn())),)

    with pytest.raises(ValueError):
        AutoConfig.for_model("shown_alone")
    ARCHITECTURES.register("shown_alone")(Plugin)
    try:
        rows = family_rows("shown_alone", read_results())
    finally:
        del ARCHITECTURES._entries["shown_alone"]
    assert {(row.kind, row.state) for row in rows} == {(kind, "not tested") for kind in ("head", "neuron", "layer")}
    assert {row.reason for row in rows if row.kind == "head"} == {"with some configs not at all: one"}
