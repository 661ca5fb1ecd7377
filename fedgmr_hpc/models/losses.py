"""Losses and hits per scored item: an image, or a token that is not padding.

Pads are not scored, where the released code scores them (docs/method.md#deviations, 32).

Shapes: B batch, T tokens, C classes or vocabulary.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from fedgmr_hpc.config.messages import must_be

NOT_SCORED = -1  # the label of a pad


def loss_function(kind: Literal["bce", "cross_entropy"], logits: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of each scored item [items].

    Args:
        kind: `bce` on one-hot targets, the mean over classes, or `cross_entropy`.
        logits: [B, C] of images, all scored, or [B, T, C] of sequences.
        labels: integers [B] or [B, T], -1 where a token is not scored.
    """
    if logits.dim() == 2:
        return _losses(kind, logits, labels)
    labels = labels.flatten()
    losses = _losses(kind, logits.flatten(0, 1), labels.clamp_min(0))
    return losses[labels != NOT_SCORED]


def hide_classes(logits: Tensor, absent: Tensor | None) -> Tensor:
    """Return logits [B, C], 0 at the classes [C] that are absent: such a class is never learnt to
    be wrong (the masked cross-entropy of Diao et al. 2021).
    """
    return logits if absent is None else logits.masked_fill(absent, 0.0)


def soft_loss(
    kind: Literal["bce", "cross_entropy"], logits: Tensor, teacher: Tensor, labels: Tensor
) -> Tensor:
    """Return the loss of each scored item [items] towards what another network says of it.

    The labels of the loss are replaced by the teacher's probabilities at temperature 1: its softmax
    for `cross_entropy` (Horvath et al. 2021, section 3.3, with alpha = T = 1, but for the teacher's
    entropy, which has no gradient), the sigmoid of each class for `bce`.

    Args:
        logits, teacher: as the logits of `loss_function`; no gradient is to reach the teacher's.
        labels: only say which items are scored.
    """
    if logits.dim() == 3:
        is_scored = labels.flatten() != NOT_SCORED
        logits, teacher = (each.flatten(0, 1)[is_scored] for each in (logits, teacher))
    if kind == "cross_entropy":
        return F.cross_entropy(logits, teacher.softmax(1), reduction="none")
    return F.binary_cross_entropy_with_logits(logits, teacher.sigmoid(), reduction="none").mean(1)


def _losses(kind: str, logits: Tensor, labels: Tensor) -> Tensor:
    """[items] of logits [items, C] and labels [items]."""
    if kind == "cross_entropy":
        return F.cross_entropy(logits, labels, reduction="none")
    targets = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)


def count_hits(logits: Tensor, labels: Tensor, top_k: int) -> Tensor:
    """Scored items whose label is among the `top_k` greatest logits: an int64 scalar, unread.

    Args:
        logits: [..., C].
        labels: integers [...]; -1 is never hit.

    Raises:
        ValueError: there are fewer than `top_k` classes.
    """
    num_classes = logits.shape[-1]
    if not 1 <= top_k <= num_classes:
        raise ValueError(must_be("top_k", f"between 1 and {num_classes}, the classes", top_k))
    if top_k == 1:
        return (logits.argmax(-1) == labels).sum()
    return (logits.topk(top_k, sorted=False).indices == labels.unsqueeze(-1)).sum()
