"""Train, store and load zoos of networks, and the data that they are trained on."""
