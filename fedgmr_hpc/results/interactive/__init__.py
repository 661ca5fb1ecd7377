"""Pages of runs that a person works with in a browser, of ended runs and of running ones."""
