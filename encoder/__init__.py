"""An item (image, title, attributes) or a query becomes a vector: the MOON encoder."""
