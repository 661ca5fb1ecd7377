"""`bench gpu`: local steps on one GPU, and whole runs whose ranks share it.

First clients train one after the other and side by side, by plain steps and by CUDA graphs, in each
precision; nothing is sent. Every way has to train the same weights, to the bit within a precision,
before it is timed. Then runs of the paper's ImageNet-100 settings, on random images of that size,
share the GPU among 1, 2 and 4 client ranks; the best of them says how long all rounds would take.
Ranks that share a GPU do so side by side only under NVIDIA's MPS (docs/clusters.md).
"""
