"""One module per public raw format; each exposes ``load(folder) -> Tables``."""
