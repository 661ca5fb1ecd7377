"""In which precision clients compute (docs/method.md#precision).

Weights, gradients, momentum, norms, losses and updates are fp32 in every mode. With `bf16` the
passes of a network round what they multiply and fold to bfloat16 and add in fp32 (torch's
autocast); with `tf32` CUDA devices round factors to 10 bits of mantissa. Versions of the server's
model are evaluated in fp32.
"""

from __future__ import annotations

import socket
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from fedgmr_hpc.config.messages import must_be
from fedgmr_hpc.config.sections import Precision
from fedgmr_hpc.training.numeric_settings import tf32
from fedgmr_hpc.training.sgd import Net

BF16_FLAGS = ("avx512_bf16", "amx_bf16", "svebf16")  # of CPUs that multiply bf16 themselves
NEEDED_CAPABILITY = (8, 0)  # of CUDA devices, for bf16 and TF32 alike


def refuse(precision: Precision, device: str, place: str) -> str:
    """Say that the device of a place, such as "rank 1", does not have a precision; "" if it has."""
    reason = lacks(precision, device)
    when = f"{place} on {socket.gethostname()} computes on {device}"
    message = must_be("train.precision", "'fp32'", precision, when=when, because=reason)
    return message if reason else ""


def lacks(precision: Precision, device: str) -> str:
    """Say why a device of this process cannot compute so, or only by emulation; "" if it can."""
    if precision == "fp32":
        return ""
    if torch.device(device).type == "cuda":
        name = torch.cuda.get_device_name(device)
        return cuda_lacks(precision, name, torch.cuda.get_device_capability(device))
    return cpu_lacks(precision, cpu_flags())


def cuda_lacks(precision: Precision, name: str, capability: tuple[int, int]) -> str:
    """As `lacks`, of a CUDA device with this name and compute capability."""
    if precision == "fp32" or capability >= NEEDED_CAPABILITY:
        return ""
    has, needed = (".".join(map(str, each)) for each in (capability, NEEDED_CAPABILITY))
    return f"{name} has compute capability {has}, {precision} needs {needed}"


def cpu_lacks(precision: Precision, flags: Collection[str]) -> str:
    """As `lacks`, of a CPU with these flags."""
    if precision == "tf32":
        return "TF32 is a format of CUDA devices"
    if precision == "fp32" or not set(BF16_FLAGS).isdisjoint(flags):
        return ""
    return f"this CPU would emulate bf16, having none of {', '.join(BF16_FLAGS)}"


def cpu_flags(path: str = "/proc/cpuinfo") -> frozenset[str]:
    """Return what the first CPU says that it can do; empty where nothing is known."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return frozenset()
    found = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(found, "").split())


def computing_in(precision: Precision) -> AbstractContextManager[None]:
    """Compute in this precision until the end, as far as settings of the process decide it."""
    return tf32() if precision == "tf32" else nullcontext()


class AutocastNet:
    """A network whose passes multiply in bf16; it has what the network has, and shares it all.

    Its logits are fp32, and so is everything outside of its passes.
    """

    def __init__(self, net: Net) -> None:
        self._net = net
        self.flat, self.statistics, self.generator = net.flat, net.statistics, net.generator
        self.trainable, self.split = net.trainable, net.split

    def _autocast(self) -> torch.autocast:
        # each weight is cast once a pass anyway, and a cache of casts does not survive CUDA graphs
        kind = self.flat.device.type
        return torch.autocast(kind, dtype=torch.bfloat16, cache_enabled=False)

    def __call__(self, images: Tensor, training: bool = False) -> Tensor:
        """Compute logits in bf16; return them as fp32."""
        with self._autocast():
            logits = self._net(images, training)
        return logits.float()

    def measure(self, images: Tensor) -> Tensor:
        """Set the statistics of static batch norms to those of one batch; return a copy [S]."""
        with self._autocast():
            return self._net.measure(images)


def in_precision(net: Net, precision: Precision) -> Net:
    """Return the network, computing in this precision."""
    return AutocastNet(net) if precision == "bf16" else net
