"""A client's local steps: masked, narrow, dense, on any torch device."""
