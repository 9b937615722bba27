"""Flow matching over complete sets of neural network weights."""
