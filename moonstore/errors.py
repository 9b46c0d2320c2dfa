"""The error raised by the stores and the code around them."""


class StoreError(RuntimeError):
    """The store is missing or not as expected; the message names the next command."""
