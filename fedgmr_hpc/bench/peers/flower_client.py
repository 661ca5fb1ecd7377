"""A client in Flower; a module of its own, since Ray's actors import it.

Data and module are kept by an actor from call to call, as Flower's own examples keep their data.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedgmr_hpc.bench.peers.conv2 import Conv2
from fedgmr_hpc.bench.peers.work import Work

app = ClientApp()
load_work = lru_cache(maxsize=1)(Work.load)
make_model = lru_cache(maxsize=1)(Conv2)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the model that has come on this client's samples; send it back with their number."""
    torch.set_num_threads(1)
    work = load_work(Path(str(message.content["config"]["folder"])))
    client, model = int(context.node_config["partition-id"]), make_model()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    sgd = torch.optim.SGD(model.parameters(), lr=work.learning_rate)
    x, y = torch.from_numpy(work.x[client]), torch.from_numpy(work.y[client])
    for images, classes in zip(x.split(work.batch), y.split(work.batch), strict=True):
        sgd.zero_grad()
        F.cross_entropy(model(images), classes).backward()
        sgd.step()
    metrics = MetricRecord({"num-examples": len(y)})
    arrays = ArrayRecord(model.state_dict())
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
