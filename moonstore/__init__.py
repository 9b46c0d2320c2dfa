"""Fast Feast stores and engine: point-in-time joins, columnar reads and writes, compare-and-set."""
