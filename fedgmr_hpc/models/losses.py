"""Losses and hits per item: an image, or a token.

Pads are not scored, where the released code scores them (docs/method.md#deviations, 32). Their
loss is 0 rather than left out, so that nothing waits for a device to count what is left.

Shapes: B batch, T tokens, C classes or vocabulary.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from fedgmr_hpc.config.messages import must_be

NOT_SCORED = -1  # the label of a pad


def loss_function(kind: Literal["bce", "cross_entropy"], logits: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of each item [items], 0 where it is not scored.

    Args:
        kind: `bce` on one-hot targets, the mean over classes, or `cross_entropy`.
        logits: [B, C] of images, all scored, or [B, T, C] of sequences.
        labels: integers [B] or [B, T], -1 where a token is not scored.
    """
    logits, items = logits.flatten(0, -2), labels.flatten()
    if kind == "cross_entropy":
        return F.cross_entropy(logits, items, reduction="none", ignore_index=NOT_SCORED)
    targets = F.one_hot(items.clamp_min(0), logits.shape[1]).to(logits.dtype)
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)
    return _only_scored(losses, labels)


def mean_of_scored(losses: Tensor, labels: Tensor) -> Tensor:
    """Return the mean loss of the scored items, as a scalar.

    Args:
        losses: [items]; what those that are not scored have does not count.
        labels: integers [B] of images, all scored, or [B, T] of sequences; other targets of any
            shape, all scored.
    """
    if _are_all_scored(labels):
        return losses.mean()
    return _only_scored(losses, labels).sum() / (labels != NOT_SCORED).sum()


def _only_scored(losses: Tensor, labels: Tensor) -> Tensor:
    """Return the losses [items] with 0 where an item is not scored."""
    if _are_all_scored(labels):
        return losses
    return losses.masked_fill(labels.flatten() == NOT_SCORED, 0.0)


def _are_all_scored(labels: Tensor) -> bool:
    """Tell without a look at the device: only sequences of tokens have pads."""
    return labels.dim() == 1 or labels.is_floating_point()


def hide_classes(logits: Tensor, absent: Tensor | None) -> Tensor:
    """Return logits [B, C], 0 at the classes [C] that are absent: such a class is never learnt to
    be wrong (the masked cross-entropy of Diao et al. 2021).
    """
    return logits if absent is None else logits.masked_fill(absent, 0.0)


def soft_loss(
    kind: Literal["bce", "cross_entropy"], logits: Tensor, teacher: Tensor, labels: Tensor
) -> Tensor:
    """Return the loss of each item [items] towards what another network says of it, 0 where it is
    not scored.

    The labels of the loss are replaced by the teacher's probabilities at temperature 1: its softmax
    for `cross_entropy` (Horvath et al. 2021, section 3.3, with alpha = T = 1, but for the teacher's
    entropy, which has no gradient), the sigmoid of each class for `bce`.

    Args:
        logits, teacher: as the logits of `loss_function`; no gradient is to reach the teacher's.
        labels: only say which items are scored.
    """
    logits, teacher = logits.flatten(0, -2), teacher.flatten(0, -2)
    if kind == "cross_entropy":
        return _only_scored(F.cross_entropy(logits, teacher.softmax(1), reduction="none"), labels)
    each = F.binary_cross_entropy_with_logits(logits, teacher.sigmoid(), reduction="none")
    return _only_scored(each.mean(1), labels)


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
