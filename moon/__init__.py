"""The command line, and the stages it runs in order on a run folder. Contains no model."""
