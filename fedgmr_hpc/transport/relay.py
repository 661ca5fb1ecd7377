"""How a message for many ranks crosses to each node once: who holds the copy, and who may use it.

The first rank of a node that is sent a `Shared` gets its bytes, straight into a copy that its whole
node can map (node_copies.py); the head of the message has the copy's key. It tells its neighbours
where the copy is. All further ranks of that node are only told to use it: the message takes its
place in their order of arrival and is complete once the copy is. So nobody waits for a rank that is
busy training, unless that rank is still to receive the bytes; and it was sent them first because
it was idle first. On the sender's own node the sender holds the copy.

Every use is confirmed to the holder. When the sender has let go of a `Shared`, it tells each holder
how many uses there were, and after so many confirmations the holder gives up its copy.

    message  from, to           says
    USE      sender, user       tag, key and holder of a message that is in a copy
    NOTE     holder, neighbour  key of a copy, where it is, and the oldest key still held
    OPENED   user, holder       a copy is mapped
    DROP     sender, holder     no more uses, and how many there were
"""

from __future__ import annotations

import struct
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from fedgmr_hpc.config.messages import must_be
from fedgmr_hpc.transport.contract import Shared, Tag
from fedgmr_hpc.transport.node_copies import NodeCopy, fill_copy, make_copy

NODE_SIZE = "FEDGMR_HPC_RANKS_PER_NODE"  # of pretended nodes, for tests on one machine
LEAST_RANKS = 2  # of a node that are sent the same
_KEY, _PAIR = struct.Struct("<q"), struct.Struct("<qq")
_RANK_BITS = 32  # of a key; above them, a number of the sender's
_USE, _NOTE = struct.Struct("<qqq"), struct.Struct("<qqqqq")


class Note(IntEnum):
    """MPI tags of the messages about copies."""

    USE = 102
    NOTE = 103
    OPENED = 104
    DROP = 105


Post = Callable[[int, int, memoryview], None]  # (rank, MPI tag, bytes)


def pretended_node_size(env: Mapping[str, str]) -> int | None:
    """Return how many successive ranks are to count as one node; None for the real nodes.

    Raises:
        ValueError: the variable is no positive number.
    """
    text = env.get(NODE_SIZE)
    if text is None:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(must_be(NODE_SIZE, "a positive whole number", text))
    return int(text)


@dataclass
class _Sent:
    """Where a `Shared` of this rank has gone, by node."""

    key: int
    holders: dict[int, int] = field(default_factory=dict)
    num_uses: Counter[int] = field(default_factory=Counter)


@dataclass
class _Held:
    """A copy that this rank holds for its node.

    Attributes:
        num_uses: once the sender has said how many there are.
    """

    copy: NodeCopy
    num_opened: int = 0
    num_uses: int | None = None


class Relay:
    """One rank's part in it: as sender, as holder and as user.

    Args:
        node_of: node of each rank; -1 where its ranks cannot reach each other's memory.
        post: sends a short message to a rank.
    """

    def __init__(self, rank: int, node_of: Sequence[int], post: Post) -> None:
        self.rank, self.node_of, self._post = rank, node_of, post
        self._num_ranks = Counter(node for other, node in enumerate(node_of) if other != rank)
        self._num_sent = 0
        self._sent: weakref.WeakKeyDictionary[Shared, _Sent] = weakref.WeakKeyDictionary()
        self._let_go: list[_Sent] = []  # their `Shared` is no more
        self.held: dict[int, _Held] = {}
        self._notes: dict[int, dict[int, NodeCopy]] = {}  # by holder and key

    # --- the sender's side

    def serves(self, dest: int) -> bool:
        """Whether a copy on the node of `dest` would be used more than once."""
        node = self.node_of[dest]
        return dest != self.rank and node >= 0 and self._num_ranks[node] >= LEAST_RANKS

    def key_for_holder(self, dest: int, shared: Shared) -> int | None:
        """Return the key under which `dest` is to hold a copy; None if its node has one."""
        sent, node = self._find(shared), self.node_of[dest]
        if node in sent.holders:
            return None
        if node == self.node_of[self.rank]:
            sent.holders[node] = self.rank
            self.held[sent.key] = _Held(fill_copy(shared.parts))
            return None
        sent.holders[node] = dest
        return sent.key

    def use(self, dest: int, tag: Tag, shared: Shared) -> bool:
        """Tell `dest` to take the copy of its node; return whether the copy was there before."""
        sent, node = self._sent[shared], self.node_of[dest]
        holder = sent.holders[node]
        if holder == self.rank:
            self._tell(dest, sent.key)
        sent.num_uses[node] += 1
        self._post(dest, Note.USE, memoryview(_USE.pack(tag, sent.key, holder)))
        return holder != self.rank or sent.num_uses[node] > 1

    def _find(self, shared: Shared) -> _Sent:
        if shared not in self._sent:
            self._num_sent += 1
            sent = _Sent(self._num_sent << _RANK_BITS | self.rank)
            self._sent[shared] = sent
            weakref.finalize(shared, self._let_go.append, sent).atexit = False
        return self._sent[shared]

    def drop_unused(self) -> None:
        """Have the copies given up whose `Shared` is no more."""
        while self._let_go:
            sent = self._let_go.pop()
            for node, holder in sent.holders.items():
                self._answer(holder, Note.DROP, sent.key, sent.num_uses[node])

    def _answer(self, holder: int, note: Note, *words: int) -> None:
        content = memoryview((_PAIR if len(words) == 2 else _KEY).pack(*words))
        if holder == self.rank:
            self.take(self.rank, note, content)
        else:
            self._post(holder, note, content)

    # --- the holder's side

    def hold(self, key: int, num_bytes: int) -> memoryview:
        """Return the bytes of a new copy, to be filled."""
        copy, place = make_copy(num_bytes)
        self.held[key] = _Held(copy)
        return place

    def publish(self, key: int) -> None:
        """Tell the neighbours that a copy is complete."""
        if key not in self.held:
            return  # nobody else is to use it
        for rank, node in enumerate(self.node_of):
            if node == self.node_of[self.rank] and rank != self.rank:
                self._tell(rank, key)
        self._notes.setdefault(self.rank, {})[key] = self.held[key].copy

    def _tell(self, rank: int, key: int) -> None:
        words = (key, *self.held[key].copy, min(self.held))
        self._post(rank, Note.NOTE, memoryview(_NOTE.pack(*words)))

    def _close_if_used(self, key: int) -> None:
        held = self.held[key]
        if held.num_opened == held.num_uses:
            held.copy.close()
            del self.held[key]
            self._notes.get(self.rank, {}).pop(key, None)

    # --- the user's side

    def open(self, holder: int, key: int) -> memoryview | None:
        """Return a message's bytes; None while its holder has not told where they are."""
        copy = self._notes.get(holder, {}).get(key)
        if copy is None:
            return None
        mapped = copy.open()
        self._answer(holder, Note.OPENED, key)
        return mapped

    def take(self, source: int, note: int, content: memoryview) -> None:
        """Take a NOTE, an OPENED or a DROP."""
        if note == Note.NOTE:
            key, pid, descriptor, num_bytes, oldest = _NOTE.unpack(content)
            known = self._notes.get(source, {})
            self._notes[source] = {each: at for each, at in known.items() if each >= oldest}
            self._notes[source][key] = NodeCopy(pid, descriptor, num_bytes)
            return
        if note == Note.OPENED:
            (key,) = _KEY.unpack(content)
            self.held[key].num_opened += 1
        else:
            key, num_uses = _PAIR.unpack(content)
            self.held[key].num_uses = num_uses
        self._close_if_used(key)


def unpack_use(content: memoryview) -> tuple[Tag, int, int]:
    """Return tag, key and holder that a USE names."""
    tag, key, holder = _USE.unpack(content)
    return Tag(tag), key, holder
