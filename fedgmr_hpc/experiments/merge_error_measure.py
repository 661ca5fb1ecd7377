"""The error of merging masked uploads, measured on one model (paper: the bound (1/K) sum f^2(p)).

All clients train the *full* model from the same version, so that their uploads u_i do not depend on
densities. W_full merges the uploads themselves, W_masked what masks M(P_i) keep of them, by the
same rule, and the error is

    e = |W_masked - W_full| / |W_full - W_0|        (2-norms over the prunable entries)

The bound's term in the same unit is the share of the clients' changes that masks cut away,
(1/K) sum |(1 - M(P_i)) (u_i - W_0)|^2 / |W_full - W_0|^2, which is at least e^2 for `gradient`.

Masks change at a refresh while uploads are in flight: the merge after it takes some updates with
the masks and densities of the refresh before. To measure that alone, the same uploads are masked by
the old masks for clients in flight, which are those with the slowest links, and by the new ones for
the others. Between the two refreshes the model goes on for `run.interval_rounds` rounds.

Merged are the uploads only: sample weights are equal, nobody is stale, the dense part, which is
always sent, is left out.

Shapes: C clients, P prunable entries, D dense entries, L levels (distinct densities).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from fedgmr_hpc.config.axes import MergeRule
from fedgmr_hpc.config.choices.registry import AGGREGATIONS
from fedgmr_hpc.config.messages import must, must_be, unknown_choice
from fedgmr_hpc.config.records import Floats, Ints
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.data.federated import FederatedData
from fedgmr_hpc.fl.aggregation import BufferEntry, Merge, merge
from fedgmr_hpc.fl.masking import Masking
from fedgmr_hpc.fl.scores import needs_grad_squares
from fedgmr_hpc.fl.submodels import MaskSet, full_masks, repack
from fedgmr_hpc.fl.updates import Assignment
from fedgmr_hpc.runtime.server import prunable_layers
from fedgmr_hpc.training.local_training import LocalTraining

RULES: tuple[MergeRule, ...] = ("mask_aware", "gradient", "average")
KINDS = ("importance", "magnitude")


@dataclass(frozen=True)
class Uploads:
    """What the clients' full models are after local training, all in the packed order of `new`.

    Attributes:
        base: [P] W_0.
        values: C uploads [P].
        new: the masks of this refresh.
        old: those of the refresh before.
    """

    base: Floats
    values: tuple[Floats, ...]
    new: MaskSet
    old: MaskSet

    @cached_property
    def whole(self) -> Floats:
        """Return [P] W_full, the same for all rules."""
        entries = [_entry(client, values, None) for client, values in enumerate(self.values)]
        return merge_equal(self.base, entries, "mask_aware")

    @cached_property
    def change(self) -> float:
        """Return |W_full - W_0|."""
        return distance(self.whole, self.base)

    def old_entry(self, client: int, density: float) -> BufferEntry:
        """Return the part of an upload that the old mask of a density keeps."""
        natural = self.new.unpack(self.values[client])
        count = self.old.counts[self.old.level(density)]
        return _entry(client, *repack(self.old.pack(natural)[:count], None, self.old, self.new))

    def new_entry(self, client: int, density: float) -> BufferEntry:
        """Return the part of an upload that the new mask of a density keeps."""
        return _entry(client, self.values[client][: self.new.counts[self.new.level(density)]], None)

    def masked(self, densities: Sequence[float]) -> list[BufferEntry]:
        """Return [C] what the new masks keep."""
        return [self.new_entry(client, density) for client, density in enumerate(densities)]

    def mixed(
        self, densities: Sequence[float], before: Sequence[float], in_flight: frozenset[int]
    ) -> list[BufferEntry]:
        """Return [C] what the old masks at the old densities keep for clients in flight, else the
        new.
        """
        return [
            self.old_entry(client, before[client])
            if client in in_flight
            else self.new_entry(client, density)
            for client, density in enumerate(densities)
        ]


def _entry(client: int, values: Floats, index: Ints | None) -> BufferEntry:
    return BufferEntry(client, 0, values, index, np.zeros(0, np.float32), 1)


def merge_equal(base: Floats, entries: Sequence[BufferEntry], rule: MergeRule) -> Floats:
    """Return [P] the merge of equally weighted updates by a rule."""
    what = Merge(base, np.zeros(0, np.float32), entries, [1.0] * len(entries))
    return merge(AGGREGATIONS[rule](), what).packed


def distance(a: Floats, b: Floats) -> float:
    """Return the 2-norm of a - b, summed in float64."""
    return float(np.sqrt(np.square(a - b, dtype=np.float64).sum()))


def relative_error(uploads: Uploads, entries: Sequence[BufferEntry], rule: MergeRule) -> float:
    """Return e of these masked uploads; see the module.

    Raises:
        ValueError: local training has changed nothing.
    """
    if uploads.change == 0:
        reason = "the merged uploads equal the model"
        raise ValueError(must("train.learning_rate", "change the model", because=reason))
    return distance(merge_equal(uploads.base, entries, rule), uploads.whole) / uploads.change


def bound_term(uploads: Uploads, densities: Sequence[float]) -> float:
    """Return (1/K) the sum of squares that the new masks cut away; see the module docstring."""
    cut = [
        np.square(values[count:] - uploads.base[count:], dtype=np.float64).sum()
        for values, count in (
            (values, uploads.new.counts[uploads.new.level(density)])
            for values, density in zip(uploads.values, densities, strict=True)
        )
    ]
    return float(np.mean(cut)) / uploads.change**2


def raise_rungs(densities: Sequence[float], rungs: Sequence[float], num: int) -> tuple[float, ...]:
    """Raise every density by `num` rungs of the ladder (docs/method.md#next-density)."""
    ladder = sorted(rungs)
    places = [ladder.index(density) for density in densities]
    return tuple(ladder[min(place + num, len(ladder) - 1)] for place in places)


def slowest(shares: Sequence[float], frac: float) -> frozenset[int]:
    """Return the share `frac` of the clients with the slowest links; of equal ones the last."""
    order = sorted(range(len(shares)), key=lambda client: (shares[client], -client))
    return frozenset(order[: round(frac * len(shares))])


class UploadMeasurement:
    """Trains what is measured: the rounds between two refreshes, and the uploads.

    Raises:
        ValueError: the sub-models of these runs are no masks of single weights.
    """

    def __init__(self, config: Config, data: FederatedData) -> None:
        kind = config.submodel.kind
        if kind not in KINDS:
            raise ValueError(unknown_choice("submodel.kind", kind, KINDS, "probing"))
        if needs_grad_squares(config.submodel):
            need, reason = "one that needs weights alone", "probing takes no squared gradients"
            raise ValueError(must_be("submodel.score", need, config.submodel.score, because=reason))
        self.config, self.data = config, data
        self.layers = prunable_layers(config, data.num_classes)

    def uploads(
        self, weights: Floats, round_: int, shares: Sequence[float], densities: Sequence[float]
    ) -> Uploads:
        """Train from one refresh to the next, and return the uploads after the second.

        They are `run.interval_rounds` rounds apart.

        Args:
            weights: [P + D] at the first refresh, natural order; what follows is not looked at.
            round_: rounds done, which only says where the clients' batches go on.
            shares: [C] densities of the rounds in between.
            densities: all that masks are wanted for.
        """
        self.training = LocalTraining(self.config, self.data)  # it keeps masks by their numbers
        masking, levels = Masking(self.config.submodel, self.layers), [*densities, *shares]
        num, weights = self.layers[-1].stop, weights[: self.training.layout.num_weights]
        old = masking.cut(weights[:num].copy(), levels, round_)
        for done in range(self.config.run.interval_rounds):
            weights = self._next_version(weights, old, shares, round_ + done)
        round_ += self.config.run.interval_rounds
        new = masking.cut(old.pack(weights[:num]), levels, round_)
        full, clients = full_masks(num), range(len(shares))
        natural = [self._train(weights, full, 1.0, client, round_)[0] for client in clients]
        values = tuple(new.pack(each) for each in natural)
        return Uploads(new.pack(weights[:num]), values, new, old)

    def _next_version(
        self, weights: Floats, masks: MaskSet, shares: Sequence[float], round_: int
    ) -> Floats:
        """Return a mask-aware merge of everybody's sub-model."""
        entries = []
        for client, share in enumerate(shares):
            values, dense = self._train(weights, masks, share, client, round_)
            entries.append(replace(_entry(client, values, None), dense=dense))
        ones = [1.0] * len(entries)
        packed, dense = masks.pack(weights[: masks.size]), weights[masks.size :]
        new = merge(AGGREGATIONS["mask_aware"](), Merge(packed, dense, entries, ones))
        return np.concatenate([masks.unpack(new.packed), new.dense])

    def _train(
        self, weights: Floats, masks: MaskSet, density: float, client: int, round_: int
    ) -> tuple[Floats, Floats]:
        """Return a client's trained sub-model (values [K] packed, dense [D])."""
        level = masks.level(density)
        train, count = self.config.train, masks.counts[level]
        at = None if masks.perm is None else torch.from_numpy(masks.perm[:count].astype(np.int64))
        task = Assignment(
            client=client,
            base_version=0,
            mask_id=masks.mask_id,
            level=level,
            density=density,
            num_kept=count,
            first_step=round_ * train.steps,
            learning_rate=train.rate_in(round_),
            measure=False,
        )
        packed = torch.from_numpy(masks.pack(weights[: masks.size])[:count])
        self.training.train(task, packed, torch.from_numpy(weights[masks.size :].copy()), at)
        values, dense = (part.numpy() for part in self.training.sub_model.entries())
        return values, dense
