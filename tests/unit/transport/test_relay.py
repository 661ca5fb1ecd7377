"""One copy a node: who is asked to hold it, who uses it, and when it is given up.

Ranks 0 and 1 are one node, 2 to 4 another, 5 is alone.
"""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path

import pytest

from fedgmr_hpc.transport.contract import Shared, Tag
from fedgmr_hpc.transport.node_copies import NodeCopy, can_read, fill_copy, make_copy, make_sample
from fedgmr_hpc.transport.relay import NODE_SIZE, Note, Relay, pretended_node_size, unpack_use

NODES = [0, 0, 2, 2, 2, 5]
CONTENT = b"what all are sent"


class World:
    """Relays whose messages wait in one queue until `run`; a USE is noted."""

    def __init__(self, nodes: list[int] = NODES) -> None:
        self.queue: deque[tuple[int, int, int, memoryview]] = deque()
        self.uses: list[tuple[int, int, int]] = []  # (user, key, holder)
        self.relays = [Relay(rank, nodes, self._post_of(rank)) for rank in range(len(nodes))]

    def _post_of(self, source: int):
        return lambda dest, note, content: self.queue.append((source, dest, note, content))

    def run(self) -> None:
        while self.queue:
            source, dest, note, content = self.queue.popleft()
            if note == Note.USE:
                _, key, holder = unpack_use(content)
                self.uses.append((dest, key, holder))
            else:
                self.relays[dest].take(source, note, content)

    def send(self, dest: int, shared: Shared) -> bool:
        """Send as a transport does; whether the bytes themselves went."""
        if key := self.relays[0].key_for_holder(dest, shared):
            self.relays[dest].hold(key, shared.num_bytes)[:] = b"".join(shared.parts)
            self.relays[dest].publish(key)
            return True
        self.relays[0].use(dest, Tag.FRAME, shared)
        return False


def test_only_nodes_with_several_receivers_are_served() -> None:
    relay = World().relays[0]
    assert [relay.serves(dest) for dest in range(6)] == [False, False, True, True, True, False]
    assert not any(World([-1] * 6).relays[0].serves(dest) for dest in range(6))
    assert [World([0, 0, 0]).relays[0].serves(dest) for dest in range(3)] == [False, True, True]


def test_bytes_go_to_the_first_rank_and_the_others_map_its_copy() -> None:
    world, shared = World(), Shared(CONTENT[:5], CONTENT[5:])
    assert [world.send(dest, shared) for dest in (3, 2, 4)] == [True, False, False]
    world.run()
    assert [(user, holder) for user, _, holder in world.uses] == [(2, 3), (4, 3)]
    for user, key, holder in world.uses:
        payload = world.relays[user].open(holder, key)
        assert payload == CONTENT and payload.readonly


def test_a_message_waits_until_its_copy_is_told_of() -> None:
    world, shared = World(), Shared(CONTENT)
    key = world.relays[0].key_for_holder(2, shared)
    place = world.relays[2].hold(key, len(CONTENT))
    assert world.relays[3].open(2, key) is None
    place[:] = CONTENT
    world.relays[2].publish(key)
    world.run()
    assert world.relays[3].open(2, key) == CONTENT


def test_the_sender_holds_the_copy_of_its_own_node() -> None:
    world, shared = World([0, 0, 0]), Shared(CONTENT)
    assert [world.send(dest, shared) for dest in (1, 2, 1)] == [False] * 3
    world.run()
    assert [world.relays[user].open(holder, key) for user, key, holder in world.uses] == [
        CONTENT
    ] * 3


@pytest.mark.parametrize("drops_first", [True, False])
def test_a_copy_is_given_up_when_all_have_opened_it(drops_first: bool) -> None:
    world, shared = World(), Shared(CONTENT)
    for dest in (2, 3, 4):
        world.send(dest, shared)
    world.run()
    (held,) = world.relays[2].held.values()
    payloads = [world.relays[user].open(holder, key) for user, key, holder in world.uses[:1]]
    if drops_first:
        del shared
        world.relays[0].drop_unused()
    world.run()
    assert world.relays[2].held
    payloads += [world.relays[user].open(holder, key) for user, key, holder in world.uses[1:]]
    if not drops_first:
        del shared
        world.relays[0].drop_unused()
    world.run()
    assert not world.relays[2].held
    assert payloads == [CONTENT, CONTENT], "mapped copies stay"
    with pytest.raises(OSError):
        held.copy.open()


def test_a_copy_that_nobody_uses_is_given_up_even_while_it_fills() -> None:
    world, shared = World(), Shared(CONTENT)
    key = world.relays[0].key_for_holder(2, shared)
    place = world.relays[2].hold(key, len(CONTENT))
    del shared
    world.relays[0].drop_unused()
    world.run()
    place[:] = CONTENT
    world.relays[2].publish(key)
    world.run()
    assert not world.relays[2].held and world.relays[3].open(2, key) is None


def test_notes_of_copies_that_are_no_more_are_forgotten() -> None:
    world = World()
    for _ in range(5):
        shared = Shared(CONTENT)
        world.send(2, shared)
        del shared
        world.relays[0].drop_unused()
        world.run()
    assert len(world.relays[4]._notes[2]) == 1 and not world.relays[2]._notes[2]


def test_a_sample_is_read_by_its_own_process_and_not_when_it_is_closed() -> None:
    copy, token = make_sample()
    assert can_read(copy, token) and not can_read(copy, b"another")
    copy.close()
    assert not can_read(copy, token)
    assert not can_read(NodeCopy(os.getpid(), 10**6, 16), token)


def test_a_sample_is_not_read_from_what_else_its_numbers_name(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    for name, flags in (("empty", os.O_RDONLY), ("pipe", os.O_RDONLY | os.O_NONBLOCK)):
        other = os.open(tmp_path / name, flags)
        try:
            assert not can_read(NodeCopy(os.getpid(), other, 16), b"token")
        finally:
            os.close(other)


def test_copies_are_what_was_put_into_them() -> None:
    copy = fill_copy([memoryview(b"ab"), memoryview(b""), memoryview(b"c")])
    assert copy.open() == b"abc"
    copy.close()
    with pytest.raises((OSError, ValueError)):
        make_copy(-1)


@pytest.mark.parametrize("text", ["0", "-1", "two", ""])
def test_a_wrong_node_size_is_refused(text: str) -> None:
    assert pretended_node_size({}) is None and pretended_node_size({NODE_SIZE: "2"}) == 2
    with pytest.raises(ValueError, match="positive whole number"):
        pretended_node_size({NODE_SIZE: text})
