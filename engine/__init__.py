"""Generates: chunk loop, pass planner, session state, encoder, models."""
