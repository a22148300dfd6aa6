"""Benchmarks. Each prints a table and writes its rows as parquet.

    python scripts/benchmark.py policies --config configs/benchmark/policies.yaml --seeds 0 1 --out runs/p.parquet
    python scripts/benchmark.py policies --config configs/benchmark/policies.yaml --variants ucb1 ucb1:loss sweep
    python scripts/benchmark.py pulls --config configs/quickstart.yaml --plot runs/pulls.png
    python scripts/benchmark.py processes --config configs/quickstart.yaml --prune.block_size 16
    accelerate launch --config_file configs/accelerate/cpu_2.yaml scripts/benchmark.py processes --config ...
    python scripts/benchmark.py precision --config configs/quickstart.yaml --search.products float16
    python scripts/benchmark.py estimates --config configs/quickstart.yaml
    python scripts/benchmark.py memory --config configs/quickstart.yaml --search.memory 0.5
    python scripts/benchmark.py calibration --config configs/quickstart.yaml --choices-on 64 256 --refits-on 0 64 256
    python scripts/benchmark.py promises --config run.yaml --promises changed=0.02 kl=0.05 metric=0.02 --draws 5000
    python scripts/benchmark.py plan --configs configs/quickstart.yaml configs/llama_wikitext2.yaml
    python scripts/benchmark.py quality --suite configs/benchmark/quality.yaml --overlay local.yaml --only task=sst2
    python scripts/benchmark.py quality --suite configs/benchmark/quality.yaml --report --out-dir runs/quality
    python scripts/benchmark.py language --config run.yaml --prune.target.layer_parameters "[0.1, 0.2]"
    python scripts/benchmark.py language --config run.yaml --methods obs --only allocation=equal
    python scripts/benchmark.py language --report --out runs/language.jsonl

`--plugin FILE` brings policies, criteria, tasks or model types from elsewhere.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # research/ is no part of what is installed

from hf_mabprune.cli.guard import guarded
from hf_mabprune.cli.settings import Arguments, read_settings
from hf_mabprune.config import PruneConfig
from hf_mabprune.policies import POLICIES
from research.benchmarks import (
    calibration,
    estimates,
    language,
    language_report,
    memory,
    plans,
    policies,
    precision,
    processes,
    promises,
    pulls,
    quality,
    quality_report,
)
from research.benchmarks.suite import read_suite


def main() -> int:
    """Parses, calls, prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    kinds = "calibration estimates language memory plan policies precision processes promises pulls quality"
    parser.add_argument("benchmark", choices=kinds.split())
    parser.add_argument("--seeds", type=int, nargs="+", help="of searches; default: 0 1, or the suite's")
    parser.add_argument("--variants", nargs="+", help="policy, or policy:reward; default: all, and ucb1:loss")
    parser.add_argument(
        "--out", help="where the rows go; default: runs/BENCHMARK.parquet, runs/language.jsonl, or the suite's"
    )
    parser.add_argument("--merge", nargs="*", default=[], help="files of other launches whose rows are taken over")
    parser.add_argument("--plot", help="where the figure of `pulls` goes, e.g. runs/pulls.png")
    parser.add_argument("--configs", nargs="+", default=[], help="files of the runs that `plan` looks at")
    parser.add_argument(
        "--choices-on", type=int, nargs="+", default=[512], help="examples of choices of `calibration`"
    )
    parser.add_argument("--refits-on", type=int, nargs="+", default=[0, 512], help="and of its refits")
    parser.add_argument("--promises", nargs="+", default=[], help="of `promises`, e.g. changed=0.02 kl=0.05")
    parser.add_argument("--examples", type=int, nargs="+", default=[500, 872], help="of its certification splits")
    parser.add_argument("--draws", type=int, default=5000, help="of splits of each size")
    parser.add_argument("--suite", default="configs/benchmark/quality.yaml", help="suite file of `quality`")
    parser.add_argument("--overlay", nargs="+", default=[], help="files merged over the suite, e.g. with local paths")
    parser.add_argument("--only", nargs="+", default=[], help="cells, e.g. task=sst2 method=race,obs allocation=own")
    parser.add_argument("--redo", action="store_true", help="measure cells of `quality` again that have a row")
    parser.add_argument("--methods", nargs="+", default=language.METHODS, help="of `language`; default: all")
    parser.add_argument("--tests", nargs="+", default=[], help="further test texts of `language`, NAME=FILE each")
    parser.add_argument(
        "--choices", nargs="+", default=[], help="parquet files of questions for `language`: NAME=FILE"
    )
    parser.add_argument("--questions", type=int, default=200, help="drawn of each of these files")
    parser.add_argument("--report", action="store_true", help="of the rows that are there; nothing is measured")
    parser.add_argument("--out-dir", help="folder for report.md, CSV and PNG of `quality --report`")
    options, settings = parser.parse_known_args()
    return guarded(lambda given: measured(options, given), settings)


def measured(options: argparse.Namespace, settings: Arguments) -> str:
    """Measures what is asked for, and gives it as text."""
    if options.benchmark == "quality":
        return compare_methods(options, settings)
    if options.benchmark == "language":
        return compare_on_a_language_model(options, settings)
    if options.benchmark == "policies":
        out = options.out or "runs/policies.parquet"
        variants = options.variants or [*POLICIES.names(), "ucb1:loss"]
        return f"{policies.compare(read_settings(settings), variants, options.seeds or [0, 1], out, options.merge)}\n"
    if options.benchmark == "plan":
        runs = [PruneConfig.from_yaml(file) for file in options.configs]
        return f"{plans.measure(runs).to_markdown(index=False, floatfmt='.3g')}\n"
    if options.benchmark == "calibration":
        table = calibration.measure(read_settings(settings), options.choices_on, options.refits_on)
        return f"{table.to_markdown(index=False, floatfmt='.4g')}\n"
    if options.benchmark == "promises":
        given = [promises.read_promise(promise) for promise in options.promises]
        out = options.out or "runs/promises.parquet"
        return f"{promises.report(read_settings(settings), out, given, options.examples, options.draws)}\n"
    measure = {
        "precision": precision.measure, "estimates": estimates.measure, "pulls": pulls.measure,
        "memory": memory.measure, "processes": processes.measure,
    }  # fmt: skip
    table = measure[options.benchmark](read_settings(settings))
    if options.benchmark == "pulls" and options.plot:
        pulls.plot(table, options.plot)
    return f"{table.to_markdown(index=False, floatfmt='.3g')}\n"


def compare_methods(options: argparse.Namespace, overrides: Arguments) -> str:
    """Measures what is missing, or reports what is there."""
    seeds = [f"--seeds={options.seeds}"] if options.seeds else []
    suite = read_suite(options.suite, options.overlay, [*overrides, *seeds])
    cells, out = suite.cells(options.only), options.out or suite.out
    if not options.report:
        quality.run(suite, cells, out, options.redo)
        return ""
    report = quality_report.read_report(suite, cells, out)
    if options.out_dir:
        report.save(options.out_dir)
    return f"{report.text}\n"


def compare_on_a_language_model(options: argparse.Namespace, settings: Arguments) -> str:
    """Measures what is missing, or reports what is there."""
    out = options.out or "runs/language.jsonl"
    if options.report:
        return f"{language_report.report(out)}\n"
    data = options.tests, options.choices, options.questions
    language.run(read_settings(settings), out, options.methods, *data, options.only)
    return ""


if __name__ == "__main__":
    sys.exit(main())
