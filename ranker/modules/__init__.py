"""The modules of the click model, one idea a file."""
