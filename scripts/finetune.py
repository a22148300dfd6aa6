"""Makes a fine-tuned model to prune, from a base model and the task of a config.

    python scripts/finetune.py --base sentence-transformers/all-MiniLM-L6-v2 --out runs/models/agnews-minilm \\
        --config configs/benchmark/tasks/agnews.yaml --epochs 2 --save_dtype float16
    python scripts/finetune.py --base DIR --out DIR --config configs/benchmark/tasks/cola.yaml --epochs 3 \\
        --task.dataset "{path: parquet, data_files: {train: train.parquet, validation: validation.parquet}}"

It is trained on the calibration slice; validation and test slice are measured when it is done. Other options are those
of `mabprune prune --help`, `--plugin FILE` included.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # research/ is no part of what is installed

from hf_mabprune.cli.guard import guarded
from hf_mabprune.cli.settings import Arguments, read_settings
from research.benchmarks.finetuning import Training, finetune


def main() -> int:
    """Parses, calls, prints; one line and exit code 2 for what the user can mend."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--base", required=True, help="Hub name or folder of the base model")
    parser.add_argument("--out", required=True, help="folder of the fine-tuned checkpoint; it must not exist")
    parser.add_argument("--epochs", type=float, default=Training.epochs)
    parser.add_argument("--learning_rate", type=float, default=Training.learning_rate)
    parser.add_argument("--batch_size", type=int, default=Training.batch_size, help="examples a step")
    parser.add_argument("--max_train_examples", type=int, help="cap on training examples, drawn at random")
    parser.add_argument("--save_dtype", choices=["float32", "bfloat16", "float16"], default=Training.save_dtype)
    options, rest = parser.parse_known_args()
    chosen = vars(options)
    base, out = chosen.pop("base"), chosen.pop("out")

    def command(settings: Arguments) -> str:
        return f"{finetune(base, out, read_settings(settings), Training(**chosen))}\nsaved in {out}\n"

    return guarded(command, rest)


if __name__ == "__main__":
    sys.exit(main())
