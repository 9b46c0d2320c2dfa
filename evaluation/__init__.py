"""Artifacts become numbers: textbook metrics, baselines, controls, the report."""
