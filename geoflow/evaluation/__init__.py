"""Score generated networks, compare them with simple methods, and draw the results."""
