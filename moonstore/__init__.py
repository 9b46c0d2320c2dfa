"""Feast's stores and engine at the speed of the hardware: joins, columns, compare-and-set. Knows nothing of Moon."""
