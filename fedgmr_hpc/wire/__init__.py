"""The wire format: frames, positions, values as int8, pieces of long payloads."""
