"""StackOverflow next-word prediction from the HDF5 files of TensorFlow Federated.

As in the FedGMR experiments (data section): the first users by id, so many sentences of each,
tokens between spaces, at most 128. Corrected there (docs/method.md#deviations, 32):
the vocabulary holds the most frequent words of the chosen training sentences only, equally
frequent ones in the order in which they first appear; test words never enter it. Token 0 pads,
token 1 is any other word.

Tokens 2..T of a sentence are its targets, of test sentences too, which the released code cuts into
blocks of 21 tokens across sentences. Unknown words are inputs but, unless `data.unknown_words` is
scored, no targets: to guess "some rare word" is no prediction, so neither loss nor accuracy counts
it (as in the metric of the data set's authors; the released code counts it). Sentences without a
target are left out.
Shapes: N sentences, L = 128 tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from fedgmr_hpc.data.foreign import refuse
from fedgmr_hpc.data.formats import Split
from fedgmr_hpc.data.isolation import read_in_child

PAD, UNKNOWN, FIRST_WORD = 0, 1, 2
NUM_TOKENS = 10_000  # pad and unknown included
MAX_TOKENS = 128  # L
EXPECTED = "a TFF StackOverflow file: examples/<client>/tokens of byte strings"

Words = list[str]
UnknownWords = Literal["skipped", "scored"]


@dataclass(frozen=True)
class _Sentences:
    """Sentences of one file, with the number of the user of each."""

    words: list[Words]
    users: list[int]
    names: list[str]  # of the users


def read_stackoverflow(
    train_file: Path,
    test_file: Path,
    *,
    max_train_users: int,
    max_test_users: int,
    max_user_samples: int,
    unknown_words: UnknownWords = "skipped",
) -> tuple[Split, Split]:
    """Sentences as uint16 [N,L]; `y` counts their scored targets, `group` is the user."""
    train = _read_sentences(train_file, max_train_users, max_user_samples)
    test = _read_sentences(test_file, max_test_users, max_user_samples)
    numbers = make_vocabulary(train.words, NUM_TOKENS)
    users = {name: number for number, name in enumerate(dict.fromkeys(train.names + test.names))}
    pairs = ((train_file, train), (test_file, test))
    target = first_target(unknown_words)
    first, second = (_encode(path, part, numbers, users, target) for path, part in pairs)
    return first, second


def first_target(unknown_words: UnknownWords) -> int:
    """The smallest token that is a target."""
    return UNKNOWN if unknown_words == "scored" else FIRST_WORD


def make_vocabulary(sentences: Sequence[Words], num_tokens: int) -> dict[str, int]:
    """Word -> token, the most frequent first, of equally frequent ones the earlier first."""
    counts = Counter(word for words in sentences for word in words)
    ranked = sorted(counts, key=counts.__getitem__, reverse=True)  # stable
    return {word: FIRST_WORD + rank for rank, word in enumerate(ranked[: num_tokens - FIRST_WORD])}


def _read_sentences(path: Path, max_users: int, max_user_samples: int) -> _Sentences:
    words: list[Words] = []
    users: list[int] = []
    names: list[str] = []
    limits = map(str, (max_users, max_user_samples, MAX_TOKENS))
    for name, lines in read_in_child("fedgmr_hpc.data.tff_clients", path, limits, EXPECTED):
        words += [line.split() for line in lines]
        users += [len(names)] * len(lines)
        names.append(name)
    if not words:
        refuse(path, "no sentences", EXPECTED)
    return _Sentences(words, users, names)


def _encode(
    path: Path,
    sentences: _Sentences,
    numbers: dict[str, int],
    users: dict[str, int],
    target: int,
) -> Split:
    """The sentences that have a target, a token of at least `target`; padded."""
    x = np.zeros((len(sentences.words), MAX_TOKENS), np.uint16)
    for row, words in zip(x, sentences.words, strict=True):
        row[: len(words)] = [numbers.get(word, UNKNOWN) for word in words]
    num_scored = (x[:, 1:] >= target).sum(axis=1)
    kept = num_scored > 0
    if not kept.any():
        refuse(path, "no sentence has two words of the vocabulary", EXPECTED)
    group = np.array([users[name] for name in sentences.names], np.int32)
    return Split(x[kept], num_scored[kept], group[np.array(sentences.users)][kept])
