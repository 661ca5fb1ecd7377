"""A module's trial: one batch of zeros there and back, before any rank works.

It finds what would fail in the middle of a run, and what would make a result depend on which rank
has trained what.
"""

from __future__ import annotations

import random
import traceback
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fedgmr_hpc.models.modules.streams import seeded
from fedgmr_hpc.models.modules.tensors import batch_norms, dotted, state_buffers, trained_parameters

BATCH = 2


class Trial(NamedTuple):
    """What a trial found.

    Attributes:
        num_outputs: how many classes or tokens the module tells apart.
        wrong: what is wrong, said of the module; None if nothing is.
    """

    num_outputs: int
    wrong: str | None = None


class _Wrong(Exception):
    """Something of a module that cannot be used."""


def try_module(module: nn.Module, input_shape: tuple[int, ...], is_text: bool) -> Trial:
    """Pass a batch of zeros through a module, which is used up by it.

    Args:
        input_shape: of one sample.
        is_text: whether samples are tokens.
    """
    samples = torch.zeros(BATCH, *input_shape, dtype=torch.int64 if is_text else torch.float32)
    try:
        with seeded(0):
            return Trial(_pass_through(module, samples))
    except _Wrong as wrong:
        return Trial(0, str(wrong))
    except Exception as error:
        return Trial(0, f"fails on samples {input_shape}: {failure(error)}")


def _pass_through(module: nn.Module, samples: Tensor) -> int:
    """Return the number of outputs."""
    before, draws = _state(module), _foreign_draws()
    with torch.inference_mode():
        logits = _checked(module.eval()(samples), samples)
    if changed := _changed(before, _state(module)):
        raise _Wrong(f"changes {changed[0]} in evaluation, where nothing may change")
    trained = _checked(module.train()(samples), samples)
    parameters = dict(trained_parameters(module))
    gradients = torch.autograd.grad(
        trained.sum(), list(parameters.values()), materialize_grads=True
    )
    for name, gradient in zip(parameters, gradients, strict=True):
        if gradient.layout != torch.strided:
            raise _Wrong(f"has sparse gradients of {name}, where dense ones are needed")
    if changed := _changed(before, {name: each for name, each in _left_alone(module).items()}):
        raise _Wrong(
            f"changes {changed[0]} in training, which does not travel with the model: "
            "a persistent float32 buffer would"
        )
    if draws != _foreign_draws():
        raise _Wrong("draws random numbers of Python or NumPy, where only torch's are repeatable")
    return int(logits.shape[-1])


def _checked(logits: Any, samples: Tensor) -> Tensor:
    """Return what a module has answered, if it can be logits."""
    need = "[B, T, vocabulary]" if samples.dtype == torch.int64 else "[B, classes]"
    if not isinstance(logits, Tensor):
        raise _Wrong(f"returns a {type(logits).__name__}, where logits {need} are needed")
    if not logits.is_floating_point():
        kind = str(logits.dtype).removeprefix("torch.")
        raise _Wrong(f"returns {kind} numbers, where logits {need} are needed")
    lead = samples.shape if samples.dtype == torch.int64 else samples.shape[:1]
    if logits.dim() != len(lead) + 1 or logits.shape[:-1] != lead:
        found = list(logits.shape)
        raise _Wrong(f"returns {found} of a batch {list(samples.shape)}, not logits {need}")
    return logits


def _state(module: nn.Module) -> dict[str, Tensor]:
    tensors = (*module.named_parameters(), *module.named_buffers())
    return {name: tensor.detach().clone() for name, tensor in tensors}


def _left_alone(module: nn.Module) -> dict[str, Tensor]:
    """Return what stays on its rank, but for the counts of batch norms, which nobody reads."""
    travels = {*dict(trained_parameters(module)), *state_buffers(module)}
    travels |= {dotted(name, "num_batches_tracked") for name in batch_norms(module)}
    return {name: each for name, each in _state(module).items() if name not in travels}


def _changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    return [name for name, each in after.items() if not torch.equal(before[name], each)]


def _foreign_draws() -> tuple[Any, ...]:
    state = np.random.get_state(legacy=False)
    return random.getstate(), repr(state)


def failure(error: Exception) -> str:
    """Say in one line what an error is, and where outside of torch it was raised."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not any(each in frame.filename for each in ("/torch/", "/fedgmr_hpc/models/"))
    ]
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"
