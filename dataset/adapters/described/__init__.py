"""Tables of any layout, read as ``moon.toml`` describes them."""
