"""The thread through everything: stages, artifacts, progress, the command line. Knows no model."""
