"""Models of a user's own, as a plug-in: a residual network and a vision transformer, both small."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fedgmr_hpc


class Residual(nn.Module):
    """Two convolutions with norms beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = norm(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """A stem, two stages, and a linear layer over the mean of the pixels."""

    def __init__(self, num_classes: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.stages = nn.Sequential(Residual(8, 8, 1, norm), Residual(8, 16, 2, norm))
        self.fc = nn.Linear(16, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.stages(F.relu(self.stem(images))).mean((2, 3)))


class FourGroups(nn.GroupNorm):
    def __init__(self, channels: int) -> None:
        super().__init__(4, channels)


class VisionTransformer(nn.Module):
    """Patches of 2x2 pixels, two encoder layers with dropout, a class token."""

    def __init__(self, num_classes: int, width: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, 2)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 17, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.head(self.encoder(x)[:, 0])


@fedgmr_hpc.register_model("own_resnet", input_shape=(1, None, None))
def own_resnet(num_classes: int) -> nn.Module:
    return ResNet(num_classes, FourGroups)


@fedgmr_hpc.register_model("own_resnet_bn", input_shape=(1, 8, 8))
def own_resnet_bn(num_classes: int) -> nn.Module:
    return ResNet(num_classes, nn.BatchNorm2d)


@fedgmr_hpc.register_model("own_vit", input_shape=(1, 8, 8))
def own_vit(num_classes: int) -> nn.Module:
    return VisionTransformer(num_classes)
