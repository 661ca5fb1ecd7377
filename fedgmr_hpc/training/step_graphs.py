"""Local steps on a GPU as CUDA graphs: one launch in place of some four hundred.

A step is recorded for each network, shape of batch and setting of the optimiser, and replayed
wherever these come again: its batch is copied into memory that does not move, and weights, mask,
momenta and learning rate are read where they lie. A recorded step has to prove itself before it is
used. It is replayed on a batch beside the plain step, from the same weights; if the two differ, or
nothing can be recorded, all further steps are plain, and why is kept for the result file.

Whoever records is handed in, so that everything but CUDA's own part runs on a CPU, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fedgmr_hpc.training.sgd import Batch, LocalSgd, Net

PLAIN_FIRST = 2  # steps of a kind before it is recorded: they make libraries choose algorithms
MAX_GRAPHS = 8  # each holds memory for a step; rare shapes, such as last batches, stay plain
CLOSE = 1e-2  # of how far a step goes, where torch is not asked for the same bits


class Recorder(Protocol):
    """Who records a step."""

    def record(self, net: Net, step: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Record a step without taking it.

        Returns:
            What takes it again, and the scalar in which it leaves its result.

        Raises:
            RuntimeError: it cannot be recorded.
        """
        ...


class CudaRecorder:
    """Records steps as CUDA graphs, from the current stream, which may not be the default one."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()  # its graphs never run side by side

    def record(self, net: Net, step: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Capture one step; what other threads do meanwhile does not disturb it."""
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(net.generator)
        with torch.cuda.graph(
            graph,
            pool=self._pool,
            stream=torch.cuda.current_stream(),
            capture_error_mode="thread_local",
        ):
            result = step()
        return graph.replay, result


@dataclass(frozen=True, eq=False)
class _Recorded:
    """A step that can be replayed.

    Attributes:
        step: the one recorded, which keeps the memory alive that it reads.
        batch: the memory from which it takes its batch.
    """

    step: LocalSgd
    batch: Batch
    replay: Callable[[], None]
    mean: Tensor

    def run(self, batch: Batch) -> Tensor:
        """Take the step on a batch; return its mean loss."""
        for place, new in zip(self.batch, batch, strict=True):
            place.copy_(new, non_blocking=True)
        self.replay()
        return self.mean.clone()


class StepGraphs:
    """Takes steps, by replay where that is possible and proved right.

    Args:
        recorder: records steps.

    Attributes:
        num_replayed: steps taken by replay.
        why_plain: why no further step is recorded; "" while steps are.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder, self.num_replayed, self.why_plain = recorder, 0, ""
        self._recorded: dict[Hashable, _Recorded] = {}
        self._num_plain: Counter[Hashable] = Counter()

    @property
    def summary(self) -> str:
        """What the result file says of them."""
        return self.why_plain or f"replayed {self.num_replayed} steps"

    def run(self, step: LocalSgd, batch: Batch) -> Tensor:
        """Take one step; return the batch's mean loss without waiting for the device."""
        if not self.why_plain:
            self.why_plain = step.why_plain
        if self.why_plain:
            return step.run(batch)
        kind = _kind(step, batch)
        if kind in self._recorded:
            self.num_replayed += 1
            return self._recorded[kind].run(batch)
        self._num_plain[kind] += 1
        if self._num_plain[kind] <= PLAIN_FIRST or len(self._recorded) == MAX_GRAPHS:
            return step.run(batch)
        return self._run_first(step, batch, kind)

    def _run_first(self, step: LocalSgd, batch: Batch, kind: Hashable) -> Tensor:
        """Record a step, and take it both ways."""
        static = batch[0].clone(), batch[1].clone()
        try:
            replay, mean = self.recorder.record(step.net, lambda: step.run(static))
        except RuntimeError as error:
            self.why_plain = f"a step could not be recorded: {str(error).splitlines()[0]}"
            for parameter in step.net.trainable():
                parameter.grad = None  # of a backward pass that broke off
            return step.run(batch)
        recorded = _Recorded(step, static, replay, mean)
        before = _state(step)
        plain_mean = step.run(batch)
        plain = _state(step)
        _restore(step, before)
        replayed_mean = recorded.run(batch)
        rows = [(torch.zeros_like(plain_mean), plain_mean, replayed_mean)]
        rows += zip(before[0], plain[0], step.written, strict=True)
        if all(_agree(*row) for row in rows):
            self._recorded[kind] = recorded
            return replayed_mean
        self.why_plain = "a step that was replayed had not the result of the plain step"
        _restore(step, plain)
        return plain_mean


_State = tuple[list[Tensor], Tensor]  # vectors that a step writes, state of the random stream


def _state(step: LocalSgd) -> _State:
    return [each.clone() for each in step.written], step.net.generator.get_state()


def _restore(step: LocalSgd, state: _State) -> None:
    for vector, value in zip(step.written, state[0], strict=True):
        vector.copy_(value)
    step.net.generator.set_state(state[1])


def _agree(before: Tensor, plain: Tensor, replayed: Tensor) -> bool:
    """Compare a result, to the bit where torch is asked for the same bits, else by its change."""
    if torch.are_deterministic_algorithms_enabled():
        return torch.equal(plain.view(torch.int32), replayed.view(torch.int32))
    return bool((plain - replayed).norm() <= CLOSE * (plain - before).norm())


def _kind(step: LocalSgd, batch: Batch) -> Hashable:
    """Return what a recorded step is good for: whatever it reads at fixed addresses, and shapes."""
    memory = *step.written, *step.masks[:1], step.learning_rate
    shapes = tuple((each.shape, each.dtype) for each in batch)
    return step.net, step.loss, step.sgd, tuple(each.data_ptr() for each in memory), shapes
