"""`accelerate launch -m hf_mabprune prune ...`."""

import sys

from hf_mabprune.cli import main

sys.exit(main())
