"""Wan 2.1 made causal: published checkpoints, chunk by chunk (docs/wan.md)."""
