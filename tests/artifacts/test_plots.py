from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from PIL import Image

from hf_mabprune.artifacts import plots
from tests.artifacts.reports import make_arms, report_of


def widths(panel: Axes) -> list[float]:
    """Lengths of the bars, in the order that they were drawn."""
    return [bar.get_width() for bar in panel.patches if isinstance(bar, Rectangle)]


def dots(panel: Axes) -> dict[str, np.ndarray]:
    """Legend label -> [n, 2], places of the dots."""
    return {str(dots.get_label()): np.asarray(dots.get_offsets()) for dots in panel.collections}


@pytest.mark.parametrize("kinds", [("neuron", "head"), ("neuron",), ("head",), ("head", "expert")])
@pytest.mark.parametrize(("layers", "rounds"), [(3, 3), (1, 1)])
def test_three_readable_pngs_are_written(tmp_path: Path, kinds: tuple[str, ...], layers: int, rounds: int) -> None:
    arms = make_arms(kinds, layers)
    paths = plots.save_figures(report_of(arms, rounds), arms, tmp_path / "run" / "figures")
    assert paths == [tmp_path / "run" / "figures" / f"{name}.png" for name in ("kept_widths", "effects", "search")]
    for path in paths:
        with Image.open(path) as image:
            image.load()
            assert image.format == "PNG"
            assert 800 <= image.width <= 2000 and 250 <= image.height <= 3000
            assert len(np.unique(np.asarray(image.convert("L")))) > 20, f"{path.name} is nearly blank"
        assert path.stat().st_size < 500_000


def test_figures_leave_pyplot_alone(tmp_path: Path) -> None:
    arms = make_arms()
    before = plt.get_fignums()
    plots.save_figures(report_of(arms), arms, tmp_path)
    assert plt.get_fignums() == before


def test_bars_are_the_kept_and_whole_widths() -> None:
    arms = make_arms(layers=2)
    report = report_of(arms)
    report.kept["neuron"]["encoder.layer.1.output.dense"] = (16, 48)
    neurons, heads = plots.kept_widths(report).axes
    assert widths(neurons) == [48, 48, 24, 16]
    assert [text.get_text() for text in neurons.texts] == ["24", "16"]
    assert neurons.get_title("left") == "40 of 96 FFN neurons are kept (42%)"
    assert widths(heads) == [4, 4, 2, 2]
    assert heads.get_title("left") == "4 of 8 query heads are kept (50%)"


def test_sites_of_a_layer_share_a_bar() -> None:
    report = report_of(make_arms(("head", "expert"), layers=2))
    experts = "layers.{}.mlp.experts.{}"
    report.kept["neuron"] = {
        experts.format(layer, expert): (8 + 4 * layer, 16) for layer in range(2) for expert in range(3)
    }
    neurons, heads, routers = plots.kept_widths(report).axes
    assert widths(neurons) == [48, 48, 24, 36]
    assert neurons.get_title("left") == "60 of 96 FFN neurons are kept (62%)"
    assert widths(heads) == widths(routers) == [4, 4, 2, 2]
    assert routers.get_title("left") == "4 of 8 experts are kept (50%)"


def test_layers_of_two_stacks_are_told_apart() -> None:
    report = report_of(make_arms(("head",)))
    places = ("encoder.block.{}.layer.0.SelfAttention.o", "decoder.block.{}.layer.0.SelfAttention.o")
    sites = [place.format(layer) for place in places for layer in range(2)]
    cross = "decoder.block.1.layer.1.EncDecAttention.o"
    report.kept["head"] = {**{site: (number, 4) for number, site in enumerate(sites)}, cross: (4, 4)}
    (panel,) = plots.kept_widths(report).axes
    labels = [label.get_text() for label in panel.get_yticklabels()]
    assert labels == ["encoder 0", "encoder 1", "decoder 0", "decoder 1"]
    assert widths(panel) == [4, 4, 4, 8, 0, 1, 2, 7]
    arms = make_arms(("head",), layers=2)
    arms["site"] = [sites[0]] * 4 + [sites[2]] * 4
    (effects,) = plots.effects(arms, "kl").axes
    assert [label.get_text() for label in effects.get_xticklabels()] == ["encoder 0", "decoder 0"]


def test_first_layer_is_at_the_top() -> None:
    panel = plots.kept_widths(report_of(make_arms(("head",)))).axes[0]
    bottom, top = panel.get_ylim()
    assert bottom > 2 and top < 0


@pytest.mark.parametrize(("layers", "labelled"), [(1, [0]), (3, [0, 1, 2]), (50, list(range(0, 50, 3)))])
def test_only_layers_that_exist_are_labelled(layers: int, labelled: list[int]) -> None:
    panel = plots.kept_widths(report_of(make_arms(("head",), layers))).axes[0]
    assert list(panel.get_yticks()) == labelled


def test_only_heads_gives_one_panel_each() -> None:
    arms = make_arms(("head",))
    (sizes,) = plots.kept_widths(report_of(arms)).axes
    (effects,) = plots.effects(arms, "kl").axes
    assert sizes.get_title("left").endswith("query heads are kept (50%)")
    assert effects.get_title("left").startswith("Attention head arms")


def test_effects_are_minus_the_mean_and_split_by_fate() -> None:
    arms = make_arms(("neuron",), layers=2)
    panel = plots.effects(arms, "loss").axes[0]
    removed, kept = dots(panel)["removed (6)"], dots(panel)["kept (6)"]
    assert sorted(removed[:, 1]) == pytest.approx(sorted(2 * [1e-6, 3e-6, 9e-6]))
    assert sorted(kept[:, 1]) == pytest.approx(sorted(2 * [27e-6, 81e-6, 243e-6]))
    assert panel.get_title("left") == "FFN neuron arms, median effect: removed 3e-06, kept 8.1e-05"
    assert panel.get_ylabel() == "rise in loss (nats)"
    assert panel.get_yscale() == "log"


def test_dots_stay_in_the_column_of_their_layer() -> None:
    panel = plots.effects(make_arms(("neuron",), layers=3), "kl").axes[0]
    for label, left, right in (("removed (9)", -0.4, 0.0), ("kept (9)", 0.0, 0.4)):
        x = np.sort(dots(panel)[label][:, 0]).reshape(3, 3) - np.arange(3)[:, None]
        assert (x > left).all() and (x < right).all()


def test_mixed_signs_get_a_symmetric_log_scale() -> None:
    arms = make_arms(("head",))
    arms.loc[0, "mean"] = 0.01
    assert plots.effects(arms, "kl").axes[0].get_yscale() == "symlog"


def test_effects_without_spread_stay_linear() -> None:
    arms = make_arms(("head",)).assign(mean=0.0)
    assert plots.effects(arms, "kl").axes[0].get_yscale() == "linear"


@pytest.mark.parametrize("missing", [-np.inf, np.nan])
def test_arms_never_pulled_are_left_out_and_counted(missing: float) -> None:
    arms = make_arms(("neuron", "head"), layers=2)
    arms.loc[[0, 11, 12], "pulls"] = 0
    arms.loc[[0, 11, 12], "mean"] = missing
    figure = plots.effects(arms, "kl")
    assert figure.get_supxlabel().startswith("3 of 20 arms were never pulled and are left out.")
    assert set(dots(figure.axes[0])) == {"removed (5)", "kept (5)"}
    assert set(dots(figure.axes[1])) == {"removed (3)", "kept (4)"}


def test_caption_is_silent_when_every_arm_was_pulled() -> None:
    assert "never pulled" not in plots.effects(make_arms(), "kl").get_supxlabel()


def test_kind_that_was_never_pulled_says_so(tmp_path: Path) -> None:
    arms = make_arms()
    arms.loc[arms["kind"] == "head", ["pulls", "mean"]] = [0, -np.inf]
    figure = plots.effects(arms, "kl")
    assert figure.axes[1].get_title("left") == "Attention head arms: none was pulled"
    assert len(plots.save_figures(report_of(arms), arms, tmp_path)) == 3


def test_search_shows_the_rounds() -> None:
    report = report_of(make_arms())
    upper, lower = plots.search(report).axes
    assert upper.lines[0].get_xdata() == pytest.approx([100 / 3, 200 / 3, 100])
    assert upper.lines[0].get_ydata() == pytest.approx([1e-3, 1e-2, 1e-1])
    assert upper.get_yscale() == "log"
    pruned, dense = lower.lines
    assert pruned.get_ydata() == pytest.approx([0.31, 0.32, 0.33])
    assert dense.get_ydata() == pytest.approx([0.3, 0.3, 0.3])
    expected = "After 3 rounds and 4,500 pulls, 12 of 30 arms are removed: KL 0.1, loss +0.03 on one calibration batch"
    assert upper.get_title("left") == expected


def test_search_without_rounds_says_so(tmp_path: Path) -> None:
    arms = make_arms()
    report = report_of(arms, rounds=0)
    assert plots.search(report).axes[0].get_title("left") == "No round was run"
    assert len(plots.save_figures(report, arms, tmp_path)) == 3


def test_figures_that_are_no_numbers_are_left_out_of_the_drawings(tmp_path: Path) -> None:
    arms = make_arms()
    arms.loc[0, "mean"] = np.nan
    arms.loc[1, "mean"] = -np.inf
    report = report_of(arms)
    report.search.rounds[0] |= {"kl": np.nan, "loss": np.inf}
    report.search.rounds[1] |= {"kl": np.inf, "loss_before": np.nan}
    broken = replace(report.in_short(), metric=np.nan, interval=(np.nan, np.inf), random=np.inf, name="broken")
    report = replace(report, sizes=[report.in_short(), broken])
    for path in plots.save_figures(report, arms, tmp_path):
        with Image.open(path) as image:
            assert len(np.unique(np.asarray(image.convert("L")))) > 20, f"{path.name} is nearly blank"


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_run_without_any_number_still_has_figures(tmp_path: Path) -> None:
    arms = make_arms().assign(mean=np.nan)
    report = report_of(arms)
    for done in report.search.rounds:
        done |= dict.fromkeys(("kl", "loss", "loss_before"), np.nan)
    nothing = replace(report.before, metrics={"accuracy": np.inf}, intervals={"accuracy": (np.inf, np.nan)})
    sizes = [replace(report.in_short(), metric=np.inf, interval=(np.nan, np.nan), random=np.nan)] * 2
    assert len(plots.save_figures(replace(report, before=nothing, sizes=sizes), arms, tmp_path)) == 4
