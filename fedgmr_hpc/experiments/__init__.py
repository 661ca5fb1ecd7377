"""Experiments of their own: feasibility, aggregation error, agreement of the clocks, partitions."""
