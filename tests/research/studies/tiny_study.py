"""A study of two small tables that takes seconds; as a program, it runs it, so that a test can kill it.

python -m tests.research.studies.tiny_study DATA OUT
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from research.studies.paper.methods import Protocol

if TYPE_CHECKING:
    from research.studies.paper.study import Study

METHODS = ("ucb1", "race", "random", "linear")
PROTOCOL = Protocol(
    splits=2,
    fractions=(0.25, 0.5),
    pulls_per_arm=0.5,
    rounds=2,
    tuning_steps=4,
    variant_splits=1,
    tuning_rows=40,
    methods=METHODS,
)


def tiny_study(data: Path, out: Path, protocol: Protocol = PROTOCOL) -> "Study":
    """Describes it. What registers the networks' model type is imported here, so that a test can let go of it.

    Args:
        data: Folder of tables, as `write_tables` leaves it.
        out: Folder of the study.
        protocol: How cells are made.
    """
    from research.studies.paper.study import Study

    return Study(data, out, protocol)


if __name__ == "__main__":
    study = tiny_study(Path(sys.argv[1]), Path(sys.argv[2]))
    study.run(study.units())
