"""Numbers and plots about generated networks."""
