"""Rankers compared: the recipes at equal budget, beside the plain controls."""
