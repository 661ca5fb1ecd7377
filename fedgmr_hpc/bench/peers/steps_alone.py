"""The ceiling: the local steps of all clients, one after the other, and nothing else."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from fedgmr_hpc.bench.peers.conv2 import Conv2
from fedgmr_hpc.bench.peers.gate import Gate
from fedgmr_hpc.bench.peers.work import Work, save_tensors


def main() -> None:
    """Train round after round from the initial weights: FOLDER ADDRESS ROUNDS OUT."""
    torch.set_num_threads(1)
    work, gate = Work.load(Path(sys.argv[1])), Gate(sys.argv[2])
    model = Conv2()
    gate.wait()
    for _ in range(int(sys.argv[3])):
        model.load(work.weights)  # once a round, so that it never diverges
        for client in range(len(work.x)):
            train_client(model, work, client)
        gate.wait()
    save_tensors(Path(sys.argv[4]), {})  # nothing is averaged
    gate.finish(int(sys.argv[3]) * work.samples_a_round)


def train_client(model: Conv2, work: Work, client: int) -> None:
    """Take a client's steps."""
    sgd = torch.optim.SGD(model.parameters(), lr=work.learning_rate)
    x, y = torch.from_numpy(work.x[client]), torch.from_numpy(work.y[client])
    for images, classes in zip(x.split(work.batch), y.split(work.batch), strict=True):
        sgd.zero_grad()
        F.cross_entropy(model(images), classes).backward()
        sgd.step()


if __name__ == "__main__":
    main()
