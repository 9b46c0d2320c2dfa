"""Fast Feast stores and engine: ASOF joins, columnar reads and writes, compare-and-set."""
