"""Benchmarks, each with the ceiling it is measured against."""
