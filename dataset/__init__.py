"""Datasets: importers and the simulated shop, the checked canonical tables, and the split."""
