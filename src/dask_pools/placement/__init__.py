"""Placement: a pool for every task."""
