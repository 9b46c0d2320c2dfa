"""The retrieval towers: model, sampled negatives, training."""
