"""Search: items that answer words, a picture, or both."""
