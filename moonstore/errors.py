"""The error that every store and everything around it raises."""


class StoreError(RuntimeError):
    """The store is not there or does not fit; says which command makes it."""
