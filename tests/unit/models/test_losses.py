"""Losses and hits of images and of sequences, worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from fedgmr_hpc.models import count_hits, hide_classes, loss_function, mean_of_scored, soft_loss

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
        ("cross_entropy", [LOG_4, LOG_2, 0.0, LOG_4 - LOG_3]),
        ("bce", [math.log(8) / 2, LOG_2, 0.0, math.log(8 / 3) / 2]),
    ],
)
def test_pads_have_no_loss_and_do_not_count(kind, expected):
    logits = torch.tensor([[[0.0, LOG_3], [0.0, 0.0]], [[9.0, -9.0], [LOG_3, 0.0]]])
    logits.requires_grad_()
    labels = torch.tensor([[0, 1], [-1, 0]])
    losses = loss_function(kind, logits, labels)
    assert losses.tolist() == pytest.approx(expected, rel=1e-6)
    mean = mean_of_scored(losses + 5, labels)  # whatever an objective adds to pads
    assert mean.item() == pytest.approx(sum(expected) / 3 + 5)
    (gradient,) = torch.autograd.grad(mean, logits)
    assert (gradient != 0).any(2).tolist() == [[True, True], [False, True]]


def test_images_and_other_targets_all_count():
    losses = torch.tensor([1.0, 3.0])
    for labels in (torch.tensor([0, 7]), torch.tensor([[-1.0, 2.0], [-1.0, -1.0]])):
        assert mean_of_scored(losses, labels) == 2


def test_absent_classes_have_logit_0_and_no_gradient():
    logits = torch.tensor([[5.0, LOG_3, -7.0]], requires_grad=True)
    shown = hide_classes(logits, torch.tensor([True, False, True]))
    assert shown.tolist() == [[0.0, pytest.approx(LOG_3), 0.0]]
    loss = loss_function("cross_entropy", shown, torch.tensor([1]))
    assert loss.tolist() == pytest.approx([math.log(5 / 3)])
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert gradient.tolist() == [[0.0, pytest.approx(-0.4), 0.0]]
    assert hide_classes(logits, None) is logits


@pytest.mark.parametrize("kind", ["cross_entropy", "bce"])
def test_a_loss_towards_a_certain_teacher_is_the_one_towards_its_label(kind):
    teacher = torch.tensor([[50.0, -50.0, -50.0], [-50.0, -50.0, 50.0], [-50.0, 50.0, -50.0]])
    found = soft_loss(kind, IMAGES, teacher, torch.zeros(3))
    expected = loss_function(kind, IMAGES, torch.tensor([0, 2, 1]))
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-6)


def test_towards_a_teacher_the_gradient_is_the_difference_of_the_probabilities():
    """That of the Kullback-Leibler divergence; none where both agree."""
    logits = torch.tensor([[0.0, LOG_3]], requires_grad=True)
    teacher = torch.tensor([[0.0, 0.0]])
    loss = soft_loss("cross_entropy", logits, teacher, torch.tensor([1])).sum()
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.tolist() == [pytest.approx([0.25 - 0.5, 0.75 - 0.5])]
    same = soft_loss("cross_entropy", logits, logits.detach(), torch.tensor([1])).sum()
    assert torch.autograd.grad(same, logits)[0].abs().max() < 1e-6


def test_a_teacher_says_nothing_of_tokens_that_are_not_scored():
    logits = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, -1], [-1, 2]])
    found = soft_loss("cross_entropy", logits, IMAGES[:2].expand(2, 2, 3), labels)
    expected = soft_loss("cross_entropy", logits[[0, 1], [0, 1]], IMAGES[:2], labels[:, 0])
    assert torch.allclose(found[[0, 3]], expected)
    assert found[[1, 2]].tolist() == [0, 0]


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
    with pytest.raises(ValueError, match=r"^top_k must be between 1 and 3, the classes \(got 4\)$"):
        count_hits(IMAGES, torch.tensor([0, 0, 0]), 4)
