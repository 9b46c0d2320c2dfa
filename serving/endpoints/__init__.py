"""What the service answers: one file per kind of request, each with one function that adds its routes."""
