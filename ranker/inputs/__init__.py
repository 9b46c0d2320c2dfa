"""From a frame to the tensors the ranker reads."""
