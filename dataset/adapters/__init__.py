"""One module per public format; each turns a folder into canonical tables and their configuration."""
