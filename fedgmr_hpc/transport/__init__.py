"""Messages between ranks: the contract and its bindings (in-process, MPI, gloo, NCCL)."""
