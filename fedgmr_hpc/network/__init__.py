"""The link model: shared links as fluids, both clocks, traces of speeds, faults."""
