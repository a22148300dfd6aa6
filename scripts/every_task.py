"""A run of every task on real data: a small model is trained, then pruned by default, beside five random draws.

    python scripts/every_task.py --texts DIR --tables DIR --base sentence-transformers/all-MiniLM-L6-v2 --llama DIR
    python scripts/every_task.py --recompute

The first command goes on where it stopped, and prints the table of all tasks; texts are SICK, AG News and GSM8K, a
folder of parquet files each (`research/studies/tasks/rows.py` says what is made of them). The second one computes the
figures of the reports once more, from the saved checkpoints, with transformers and scikit-learn alone.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # research/ is no part of what is installed

from research.studies.tasks import recompute
from research.studies.tasks.run import STUDIES, Places, make, table


def main() -> int:
    """Parses, makes, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, help="folder of nli_sick, agnews and gsm8k")
    parser.add_argument("--tables", type=Path, help="folder of tables, with index.json")
    parser.add_argument("--base", default="sentence-transformers/all-MiniLM-L6-v2", help="encoder to train from")
    parser.add_argument("--llama", help="language model to train from, and its tokenizer")
    parser.add_argument("--out", type=Path, default=Path("runs/tasks"), help="folder of all tasks")
    parser.add_argument("--only", nargs="+", choices=STUDIES, default=list(STUDIES), help="tasks")
    parser.add_argument("--recompute", action="store_true", help="compute the figures of what is there once more")
    options = parser.parse_args()
    if options.recompute:
        for name in options.only:
            print(recompute.compared(name, options.out / name), flush=True)
        return 0
    if not (options.texts and options.tables and options.llama):
        parser.error("--texts, --tables and --llama must be named")
    places = Places(options.texts, options.tables, options.base, options.llama)
    print(table({name: make(name, places, options.out) for name in options.only}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
