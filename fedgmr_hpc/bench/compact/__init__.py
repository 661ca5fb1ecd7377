"""`bench compact`: local steps of sub-models over densities, by all who can compute them."""
