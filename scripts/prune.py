"""Prunes a model from a YAML config.

accelerate launch scripts/prune.py --config configs/quickstart.yaml
accelerate launch scripts/prune.py --config configs/quickstart.yaml --search.policy.name exp3
accelerate launch --config_file configs/accelerate/cpu_2.yaml scripts/prune.py --config configs/quickstart.yaml
accelerate launch scripts/prune.py --config configs/quickstart.yaml --resume
python scripts/prune.py --help
"""

import signal
import sys

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while all is imported ends it, without a traceback

from hf_mabprune.cli.commands import main

if __name__ == "__main__":
    sys.exit(main(["prune", *sys.argv[1:]]))
