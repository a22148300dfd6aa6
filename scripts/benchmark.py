"""Benchmarks. Each prints a table and writes its rows as parquet.

    python scripts/benchmark.py policies --config configs/benchmark/policies.yaml --seeds 0 1 --out runs/p.parquet
    python scripts/benchmark.py policies --config configs/benchmark/policies.yaml --variants ucb1 ucb1:loss sweep
    python scripts/benchmark.py pulls --config configs/quickstart.yaml
    python scripts/benchmark.py precision --config configs/quickstart.yaml
    python scripts/benchmark.py estimates --config configs/quickstart.yaml
"""

import argparse
import sys

import transformers
from datasets.utils import disable_progress_bars

from hf_mabprune.benchmarks import estimates, policies, precision, pulls
from hf_mabprune.cli import read_settings

DEFAULT_VARIANTS = [
    *("epsilon_greedy", "softmax", "ucb1", "thompson", "hedge", "exp3", "uniform", "sweep"),
    "ucb1:loss",
]


def main() -> int:
    """Parses, calls, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=["estimates", "policies", "precision", "pulls"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of search and random control")
    parser.add_argument("--variants", nargs="+", default=DEFAULT_VARIANTS, help="policy, or policy:reward")
    parser.add_argument("--out", default="runs/policies.parquet", help="where the rows go")
    parser.add_argument("--merge", nargs="*", default=[], help="files of other launches whose rows are taken over")
    options, settings = parser.parse_known_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    disable_progress_bars()
    if options.benchmark == "policies":
        print(policies.compare(read_settings(settings), options.variants, options.seeds, options.out, options.merge))
    elif options.benchmark == "precision":
        print(precision.measure(read_settings(settings)).to_markdown(index=False, floatfmt=".3g"))
    elif options.benchmark == "estimates":
        print(estimates.measure(read_settings(settings)).to_markdown(index=False, floatfmt=".3g"))
    else:
        print(pulls.measure(read_settings(settings)).to_markdown(index=False, floatfmt=".3g"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
