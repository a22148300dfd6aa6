"""The curve over calibration data has a row for every pair of sizes."""

from pathlib import Path

import pytest

from research.benchmarks import calibration
from tests.problems import settings_for

pytestmark = pytest.mark.whole


def test_every_choice_is_refitted_on_every_number_of_examples(tmp_path: Path, files: dict[str, str]) -> None:
    settings = settings_for(
        tmp_path, files, "llama", task={"batch_size": 4}, prune={"target": {"neurons": [0.25, 0.5]}}
    )
    table = calibration.measure(settings, choices=[8, 16], refits=[0, 16])
    pairs = table[["target", "choice examples", "refit examples"]].to_numpy().tolist()
    sizes = ("neurons-0.25", "neurons-0.5")
    assert pairs == [[size, choice, refit] for choice in (8, 16) for size in sizes for refit in (0, 16)]
    plain, refitted = (table[table["refit examples"] == count] for count in (0, 16))
    assert (plain["refit tokens"] == 0).all() and (refitted["refit tokens"] == refitted["refit tokens"].max()).all()
    assert (table["KL"] > 0).all() and plain["KL"].to_numpy() != pytest.approx(refitted["KL"].to_numpy())
