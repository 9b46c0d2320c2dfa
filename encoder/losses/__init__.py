"""Losses: contrastive losses with their negatives and weights, and rewards; one formula per file."""
