"""Readers of file formats that several data sets share, or that need a module of their own.

`cifar_batches` reads binary and pickled batches, `idx` the files of MNIST and its relatives,
`image_folders` class folders of what `images` decodes, `tff_clients` the clients of a TensorFlow
Federated file.
"""
