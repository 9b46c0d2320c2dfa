"""The MOON encoder: from an item (image, title, attributes) or a query to a vector."""
