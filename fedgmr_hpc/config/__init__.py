"""The configuration of a run: sections, method rows, files and overrides, identity, sites."""
