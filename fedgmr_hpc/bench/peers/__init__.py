"""`bench peers`: the same federated averaging by this project and by its peers, in turn.

`work` is what all of them train, `environment` the Python of the peers, `contenders` how each is
started, `comparison` the table. The other modules are programs, one for each contender, that train
round after round and wait at a `gate` between two of them; those of the peers import only `work`,
`gate` and `conv2` from this project, and run in the peers' Python.
"""
