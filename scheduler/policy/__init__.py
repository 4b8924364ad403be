"""Placement policies: pure functions from a view of the cluster to actions."""
