"""The learning rules: pure, without ranks, sockets, clocks or files."""
