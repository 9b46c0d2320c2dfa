"""What a folder of tables seems to be, said as ``moon.toml`` with the evidence of each guess."""
