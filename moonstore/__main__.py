"""``python -m moonstore``: Feast's commands, of which ``serve`` answers several times faster."""

from feast.cli.cli import cli

from moonstore.serve import take_over

if __name__ == "__main__":
    take_over()
    cli(prog_name="python -m moonstore")
