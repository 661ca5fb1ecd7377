"""Whether runs have become worse: their files beside those of a baseline, and performance logs."""
