"""Give networks few coordinates: their principal components."""
