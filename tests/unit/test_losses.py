"""Losses and hits of images and of sequences, worked out by hand (spec sections 1.3 and 9)."""

from __future__ import annotations

import math

import pytest
import torch

from fedgmr_hpc.models import count_hits, loss_function

LOG_2, LOG_3, LOG_4 = math.log(2), math.log(3), math.log(4)
IMAGES = torch.tensor([[0.1, 0.9, 0.5], [3.0, 2.0, 1.0], [0.0, 1.0, 2.0]])


def test_bce_is_the_mean_over_classes_of_one_hot_targets():
    logits = torch.tensor([[0.0, LOG_3], [LOG_3, 0.0]])
    # softplus(log 3) = log 4: label 0 costs log 2 + log 4, label 1 costs log 2 + log 4 - log 3
    per_sample = loss_function("bce", logits, torch.tensor([0, 0]))
    assert per_sample.tolist() == pytest.approx([math.log(8) / 2, math.log(8 / 3) / 2], rel=1e-6)


def test_cross_entropy_is_per_sample():
    logits = torch.tensor([[0.0, LOG_3], [0.0, 0.0]])
    per_sample = loss_function("cross_entropy", logits, torch.tensor([0, 1]))
    assert per_sample.tolist() == pytest.approx([LOG_4, LOG_2], rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("cross_entropy", [LOG_4, LOG_2, LOG_4 - LOG_3]),
        ("bce", [math.log(8) / 2, LOG_2, math.log(8 / 3) / 2]),
    ],
)
def test_losses_of_sequences_are_those_of_their_scored_tokens(kind, expected):
    logits = torch.tensor([[[0.0, LOG_3], [0.0, 0.0]], [[9.0, -9.0], [LOG_3, 0.0]]])
    logits.requires_grad_()
    losses = loss_function(kind, logits, torch.tensor([[0, 1], [-1, 0]]))
    assert losses.tolist() == pytest.approx(expected, rel=1e-6)
    (gradient,) = torch.autograd.grad(losses.mean(), logits)
    assert (gradient != 0).any(2).tolist() == [[True, True], [False, True]]


@pytest.mark.parametrize(("top_k", "hits"), [(1, 1), (2, 2), (3, 3)])
def test_hits_of_images(top_k, hits):
    # the labels' ranks are 2, 1 and 3
    found = count_hits(IMAGES, torch.tensor([2, 0, 0]), top_k)
    assert (found.dtype, found.shape, int(found)) == (torch.int64, (), hits)


@pytest.mark.parametrize(("top_k", "hits"), [(1, 1), (2, 2), (3, 3)])
def test_hits_of_sequences_leave_out_what_is_not_scored(top_k, hits):
    logits = IMAGES[[0, 1, 2, 0]].view(2, 2, 3)
    assert int(count_hits(logits, torch.tensor([[2, 0], [0, -1]]), top_k)) == hits


def test_more_guesses_than_classes():
    with pytest.raises(ValueError, match=r"^eval\.top_k: got 4, allowed 1 to 3$"):
        count_hits(IMAGES, torch.tensor([0, 0, 0]), 4)
