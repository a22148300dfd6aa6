"""Signals that tests, and what they start, can hear."""

import signal

from hf_mabprune.runtime.signals import SIGNALS

HEARD = [one for one in SIGNALS if signal.getsignal(one) != signal.SIG_IGN]  # nohup, or a job in the background
