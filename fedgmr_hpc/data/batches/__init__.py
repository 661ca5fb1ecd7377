"""Batches from samples in bytes, made on the host or on a GPU to the same bits.

What is random about a batch is drawn on the host, by `draws`, from streams that only the seed, the
client and the step decide. Images in host memory are changed by `on_host`; `device_batches` has
samples in the memory of a device, or sends them ahead, and changes them there by `on_device`.
"""
