"""The wall clock: real transfers, held to the link model."""
