"""Do the work of a run: check what was asked, fetch data and zoo, draw networks, score them, keep the results."""
