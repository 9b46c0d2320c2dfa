"""What the papers add to a plain multimodal model; one part per file."""
