"""The parts that the papers add to a plain multimodal model; one per file."""
