"""An nn.Module of one's own, a small transformer: python examples/own_model.py [key=value ...]

As a plug-in of any run, on any ranks:
    mpirun -n 3 python -m fedgmr_hpc.launch --plugin examples/own_model.py model.name=patches
"""

from __future__ import annotations

import sys
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

import fedgmr_hpc
from fedgmr_hpc.config.choices.section import Section


class Patches(nn.Module):
    """A transformer over the 2x2 patches of an image."""

    def __init__(self, num_classes: int, depth: int, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, 2, stride=2)
        self.positions = nn.Parameter(0.02 * torch.randn(16, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, classes] of images [B, 1, 8, 8]."""
        x = self.embed(images).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.encoder(x).mean(1))


@fedgmr_hpc.register_model("patches", input_shape=(1, 8, 8))
class PatchesFactory(Section):
    """Without options a function would do: def patches(num_classes): return Patches(...)."""

    depth: Annotated[int, Field(ge=1)] = 2
    """With `patches`: number of encoder layers."""

    def build(self, num_classes: int) -> nn.Module:
        """Make the module; its weights start as torch starts them, under the run's seed."""
        return Patches(num_classes, self.depth)


def main(words: list[str]) -> None:
    """Train the run `digits` with the model, and use what it has learnt."""
    config = fedgmr_hpc.load_config("digits", ["model.name=patches", *words])
    result = fedgmr_hpc.run(config)
    sizes = [parameter.numel() for parameter in result.model().parameters()]
    print(f"{type(result.model()).__name__} of {sum(sizes):,} parameters:")
    print(f"test accuracy {100 * result.evaluations['test_accuracy'][-1]:.1f} %")


if __name__ == "__main__":
    main(sys.argv[1:])
