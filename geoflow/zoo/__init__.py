"""Populations of trained networks."""
