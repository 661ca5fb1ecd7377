"""A run in progress: the server, the client ranks, their pools, the ledger, resume and replay."""
