"""`accelerate launch -m hf_mabprune prune ...`."""

import sys

from hf_mabprune.cli.commands import main

sys.exit(main())
