"""Data sets, real and synthetic, and which client holds which sample.

Each data set is a module that registers its `source`; `registry` looks for one and for its files.
`formats` has readers that several share, `own` the data sets that users bring. Files are decoded
once into a `cache` of checksummed `splits`; `untrusted` guards the readers.
`datasets` opens a data set; `batches` are drawn on the host and made there or on a GPU;
`partition` deals samples to clients, and `federated` brings all together for a run.
"""
