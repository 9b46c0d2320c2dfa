"""Speed and memory, beside plain ways to do the same work."""
