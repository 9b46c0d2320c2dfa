"""What the click model is made of, one idea a file."""
