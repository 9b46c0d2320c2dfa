"""``python -m moon`` is the command ``moon``."""

from moon.cli import main

main()
