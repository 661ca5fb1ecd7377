"""Tables, statistics and lines for people: used by results, studies and scaling."""
