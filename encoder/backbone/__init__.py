"""A multimodal language model from a config or a checkpoint, run layer by layer."""
