"""Raw catalogues and behaviour logs become canonical tables under contract."""
