"""Layers that compute from their kept weights alone: what they are, and who computes them."""
