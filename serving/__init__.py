"""A request becomes an answer: candidates, features, one scoring function, HTTP."""
