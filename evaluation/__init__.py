"""Measure a run: textbook metrics, baselines, controls, the report."""
