"""StackOverflow next-word prediction, from the HDF5 files of TensorFlow Federated.

The first users by id are taken, a number of sentences of each, tokens between spaces, at most 128
(docs/method.md#data-sets). Corrected with respect to the released code
(docs/method.md#deviations, 32): the vocabulary holds the most frequent words of the chosen training
sentences only, and test words never enter it; equally frequent words rank in the order of their
first appearance. Token 0 pads, token 1 is any other word.

Tokens 2..T of a sentence are its targets, in the test split too, where the released code cuts
blocks of 21 tokens across sentences. Unknown words are inputs but no targets, unless
`data.unknown_words` is scored: guessing "some rare word" predicts nothing, so neither loss nor
accuracy counts it (as in the metric of the data set's authors; the released code counts it).
Sentences without a target are left out.

Shapes: N sentences, L = 128 tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from fedgmr_hpc.config.sections import DataConfig
from fedgmr_hpc.data.cache import file_facts
from fedgmr_hpc.data.source import DatasetSource, Files, Plan, Traits, plan_build, register
from fedgmr_hpc.data.splits import Split, Splits
from fedgmr_hpc.data.untrusted import read_in_child, refuse

PAD, UNKNOWN, FIRST_WORD = 0, 1, 2
NUM_TOKENS = 10_000  # including pad and unknown
MAX_TOKENS = 128  # L
EXPECTED = "a TFF StackOverflow file: examples/<client>/tokens of byte strings"
TRAITS = Traits(NUM_TOKENS, (MAX_TOKENS,), is_text=True, top_k=5, has_groups=True)
CHOICES = ("max_train_users", "max_test_users", "max_user_samples", "unknown_words")  # of `data`
INSTRUCTIONS = """\
StackOverflow is published by TensorFlow Federated, tff.simulation.datasets.stackoverflow: unpack
https://storage.googleapis.com/tff-datasets-public/stackoverflow.tar.bz2 to
  ROOT/stackoverflow/stackoverflow_train.h5
  ROOT/stackoverflow/stackoverflow_test.h5
(ROOT may also be that folder itself.)"""

Words = list[str]
UnknownWords = Literal["skipped", "scored"]


@dataclass(frozen=True)
class _Sentences:
    """Sentences of one file.

    Attributes:
        words: [N] of each sentence.
        users: [N] who wrote it, as a position in `names`.
        names: of the users.
    """

    words: list[Words]
    users: list[int]
    names: list[str]


def find_files(root: Path) -> Files:
    """List the two files."""
    names = "stackoverflow_train.h5", "stackoverflow_test.h5"
    folders = [root / "stackoverflow", root]
    has_one = (folder for folder in folders if any((folder / name).is_file() for name in names))
    folder = next(has_one, folders[0])
    return [folder / names[0]], [folder / names[1]]


def read_stackoverflow(
    train_file: Path,
    test_file: Path,
    *,
    max_train_users: int,
    max_test_users: int,
    max_user_samples: int,
    unknown_words: UnknownWords = "skipped",
) -> Splits:
    """Read sentences as uint16 [N, L]; `y` counts their scored targets, `group` is the user.

    Args:
        train_file: file of the training sentences, which alone make the vocabulary.
        test_file: file of the test sentences.
        max_train_users: users taken from the training file, the first by id.
        max_test_users: users taken from the test file.
        max_user_samples: sentences taken from each user.
        unknown_words: whether words outside the vocabulary are targets.

    Raises:
        BadFile: a file is damaged, or holds no usable sentence.
    """
    train = _read_sentences(train_file, max_train_users, max_user_samples)
    test = _read_sentences(test_file, max_test_users, max_user_samples)
    numbers = make_vocabulary(train.words, NUM_TOKENS)
    users = {name: number for number, name in enumerate(dict.fromkeys(train.names + test.names))}
    pairs = ((train_file, train), (test_file, test))
    target = first_target(unknown_words)
    first, second = (_encode(path, part, numbers, users, target) for path, part in pairs)
    return first, second


def first_target(unknown_words: UnknownWords) -> int:
    """Return the smallest token that is a target."""
    return UNKNOWN if unknown_words == "scored" else FIRST_WORD


def make_vocabulary(sentences: Sequence[Words], num_tokens: int) -> dict[str, int]:
    """Number the words, the most frequent first, the earlier first if equally frequent.

    Args:
        sentences: from which words are counted.
        num_tokens: of the vocabulary, including pad and unknown.

    Example:
        >>> make_vocabulary([["a", "b", "b"], ["c"]], num_tokens=4)
        {'b': 2, 'a': 3}
    """
    counts = Counter(word for words in sentences for word in words)
    ranked = sorted(counts, key=counts.__getitem__, reverse=True)  # stable: ties stay in order
    return {word: FIRST_WORD + rank for rank, word in enumerate(ranked[: num_tokens - FIRST_WORD])}


def _read_sentences(path: Path, max_users: int, max_user_samples: int) -> _Sentences:
    words: list[Words] = []
    users: list[int] = []
    names: list[str] = []
    limits = map(str, (max_users, max_user_samples, MAX_TOKENS))
    for name, lines in read_in_child("fedgmr_hpc.data.formats.tff_clients", path, limits, EXPECTED):
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
    """Encode and pad the sentences that have a target, a token of at least `target`."""
    x = np.zeros((len(sentences.words), MAX_TOKENS), np.uint16)
    for row, words in zip(x, sentences.words, strict=True):
        row[: len(words)] = [numbers.get(word, UNKNOWN) for word in words]
    num_scored = (x[:, 1:] >= target).sum(axis=1)
    kept = num_scored > 0
    if not kept.any():
        refuse(path, "no sentence has two words of the vocabulary", EXPECTED)
    group = np.array([users[name] for name in sentences.names], np.int32)
    return Split(x[kept], num_scored[kept], group[np.array(sentences.users)][kept])


def _plan(data: DataConfig, files: Files, seed: int) -> Plan:
    train, test = files
    choices = {key: getattr(data, key) for key in CHOICES}
    facts = [*file_facts(train + test), *choices.values()]
    paths = {"train_file": train[0], "test_file": test[0]}
    return plan_build(data.name, TRAITS, facts, read_stackoverflow, **paths, **choices)


register(DatasetSource("stackoverflow", TRAITS, _plan, find_files, INSTRUCTIONS))
