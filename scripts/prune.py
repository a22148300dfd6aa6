"""Prunes a model from a YAML config.

accelerate launch scripts/prune.py --config configs/quickstart.yaml
accelerate launch scripts/prune.py --config configs/quickstart.yaml --search.policy.name exp3
accelerate launch --config_file configs/accelerate/cpu_2.yaml scripts/prune.py --config configs/quickstart.yaml
accelerate launch scripts/prune.py --config configs/quickstart.yaml --resume
python scripts/prune.py --help
"""

import sys

from hf_mabprune.cli.commands import main

if __name__ == "__main__":
    sys.exit(main(["prune", *sys.argv[1:]]))
