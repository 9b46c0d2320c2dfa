"""A multimodal language model, built from a config or loaded from a checkpoint, and run layer by layer."""
