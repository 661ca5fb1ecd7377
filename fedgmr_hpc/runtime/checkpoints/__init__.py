"""Checkpoints of a run: when one is written, what it holds, and how a run is resumed from one.

A checkpoint (RUN.ckpt, storage/checkpoint.py) holds the configuration, the fingerprint of the data,
how many rows each table of the result file had, and the server's state: model, buffer, densities
and triggers, admission, clients (`coordinator`, fl/snapshot.py); transfers under way, their numbers
and the time (`clock`); byte counts and who knows which positions (`ledger`); the hash of the event
log; delivered updates whose rows wait for their merge. Random streams are keyed and need no state
(config/randomness.py), and neither do the ranks, except for what clients keep between dispatches
(fl/client_memory.py), which is collected from them.

On the virtual clock training runs ahead of time. So a checkpoint first lets the ranks finish what
they were given, evaluations too, and then holds the updates of all clients in flight. A run that is
killed at any moment and resumed, on any number of ranks, gives the same bytes as an unbroken one;
rows written after the checkpoint are cut off.

On the wall clock time continues from where it was, and clients in flight are sent the current
version again (`Resumed` in the event log, so replays follow it); their memories begin anew. Such a
run is not bit for bit what it would have been.
"""
