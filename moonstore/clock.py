"""How far clocks may differ."""

from datetime import timedelta

CLOCK_SKEW = timedelta(minutes=5)  # how far another clock may be ahead of ours
