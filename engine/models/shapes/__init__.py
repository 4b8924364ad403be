"""The `shapes` model: a small causal video model of a procedural world, with its data and its training."""
