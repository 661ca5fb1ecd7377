"""Any `torch.nn.Module` as a model (docs/extending.md#a-model).

`model` has what a user's factory makes, `tensors` tells apart what masks may cut, what travels
dense and what stays, `net` lays the module into one flat vector, `trial` tries it before a run, and
`streams` gives it random numbers of the run.
"""
