"""The rule table: how a feature of the store becomes an input of a model, one small piece per rule."""
