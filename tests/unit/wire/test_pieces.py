"""Pieces of a transfer: cut anywhere, sent twice, put together again, and refused when they lie."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgmr_hpc.config.errors import WireError
from fedgmr_hpc.wire.pieces import SIZE, Incoming, Mark, Outgoing, read_mark


def make_outgoing(*parts: bytes) -> Outgoing:
    return Outgoing([memoryview(part) for part in parts])


def take(payload: Outgoing, upto: int) -> list[bytes]:
    return [bytes(part) for part in payload.take(upto)]


def put(payload: Incoming, begin: int, piece: bytes, end: int | None = None) -> None:
    end = begin + len(piece) if end is None else end
    payload.put(Mark(0, 1, begin, end), memoryview(piece))


# --- marks


def test_a_mark_survives_the_wire():
    mark = Mark(client=3, number=2**40, begin=0, end=2**40 + 1, attempt=2)
    assert len(mark.pack()) == SIZE == 40
    assert read_mark(memoryview(mark.pack())) == mark


def test_a_mark_is_read_from_the_head_of_a_message():
    assert read_mark(memoryview(Mark(1, 2, 3, 4, 5).pack() + b"piece")) == (1, 2, 3, 4, 5)


@pytest.mark.parametrize("length", [0, 39])
def test_a_message_too_short_for_a_mark_is_refused(length):
    with pytest.raises(WireError, match=f"{length} bytes are shorter than a mark of 40"):
        read_mark(memoryview(bytes(length)))


# --- outgoing


def test_every_byte_is_taken_once_and_in_order():
    payload = make_outgoing(b"abc", b"", b"defg")
    assert (payload.size, payload.sent) == (7, 0)
    assert take(payload, 2) == [b"ab"]
    assert take(payload, 5) == [b"c", b"de"]
    assert take(payload, 7) == [b"fg"]
    assert payload.sent == 7


@pytest.mark.parametrize("upto", [0, 3, 5])
def test_nothing_is_taken_again(upto):
    payload = make_outgoing(b"abc", b"defg")
    payload.take(5)
    assert take(payload, upto) == [] and payload.sent == 5


def test_a_transfer_can_begin_anew():
    payload = make_outgoing(b"abc", b"defg")
    payload.take(5)
    payload.rewind()
    assert take(payload, 7) == [b"abc", b"defg"]


def test_arrays_leave_as_their_bytes_without_a_copy():
    values = np.array([1.0, 2.0], np.float32)
    payload = Outgoing([values.data, np.empty(0, np.float32).data])
    (part,) = payload.take(8)
    assert payload.size == 8 and part == values.tobytes()
    assert np.shares_memory(np.frombuffer(part, np.uint8), values)


# --- incoming


def test_pieces_in_order_make_the_payload():
    payload = Incoming(5)
    put(payload, 0, b"ab")
    assert not payload.is_complete
    put(payload, 2, b"cde")
    assert payload.is_complete and payload.buffer.tobytes() == b"abcde"


def test_an_empty_payload_is_complete_at_once():
    assert Incoming(0).is_complete


def test_a_piece_that_came_before_changes_nothing():
    payload = Incoming(5)
    put(payload, 0, b"abc")
    put(payload, 0, b"XY")
    put(payload, 3, b"de")
    put(payload, 3, b"ZZ")
    assert payload.is_complete and payload.buffer.tobytes() == b"abcde"


def test_a_piece_that_came_in_part_adds_what_is_new():
    payload = Incoming(5)
    put(payload, 0, b"abc")
    put(payload, 1, b"bcd")
    assert payload.filled == 4
    put(payload, 4, b"e")
    assert payload.buffer.tobytes() == b"abcde"


def test_a_gap_is_named_and_the_missing_piece_can_still_come():
    payload = Incoming(5)
    put(payload, 0, b"a")
    with pytest.raises(WireError, match="bytes 1 to 3 of the transfer are missing"):
        put(payload, 3, b"de")
    put(payload, 1, b"bc")
    put(payload, 3, b"de")
    assert payload.buffer.tobytes() == b"abcde"


@pytest.mark.parametrize(
    ("begin", "piece", "end"),
    [
        (0, b"ab", 3),  # shorter than marked
        (0, b"abcd", 3),  # longer
        (0, b"abcdef", 6),  # longer than the payload
        (5, b"f", 6),  # behind it
        (-2, b"abc", 1),  # before it
        (3, b"", 2),  # backwards
    ],
)
def test_a_piece_that_is_not_what_its_mark_says_is_refused(begin, piece, end):
    payload = Incoming(5)
    with pytest.raises(WireError, match=f"a piece of {len(piece)} bytes is marked"):
        put(payload, begin, piece, end)
    assert payload.filled == 0


# --- both


@st.composite
def cut_payloads(draw):
    """(runs of bytes, ends of the pieces)."""
    parts = draw(st.lists(st.binary(max_size=20), min_size=1, max_size=5))
    size = sum(map(len, parts))
    cuts = draw(st.lists(st.integers(0, size), max_size=8))
    return parts, [*sorted(cuts), size]


def pieces_of(parts: list[bytes], ends: list[int]) -> list[tuple[int, bytes]]:
    """(begin, bytes) of each piece."""
    payload, pieces = make_outgoing(*parts), []
    for end in ends:
        begin = payload.sent
        pieces.append((begin, b"".join(take(payload, end))))
    return pieces


@settings(max_examples=200, deadline=None)
@given(cut_payloads(), st.data())
def test_any_cut_with_any_duplicates_makes_the_same_payload(cut, data):
    parts, ends = cut
    pieces = pieces_of(parts, ends)
    payload = Incoming(sum(map(len, parts)))
    for index, piece in enumerate(pieces):
        again = data.draw(st.lists(st.integers(0, index), max_size=3))
        for begin, content in (piece, *(pieces[earlier] for earlier in again)):
            put(payload, begin, content)
    assert payload.is_complete
    assert payload.buffer.tobytes() == b"".join(parts)


@settings(max_examples=200, deadline=None)
@given(cut_payloads(), cut_payloads().map(lambda cut: cut[1]))
def test_a_transfer_sent_again_with_other_cuts_makes_the_same_payload(cut, other_ends):
    parts, ends = cut
    size = sum(map(len, parts))
    payload = Incoming(size)
    for begin, content in pieces_of(parts, ends)[:-1]:  # the last one is lost
        put(payload, begin, content)
    for begin, content in pieces_of(parts, [min(end, size) for end in other_ends] + [size]):
        put(payload, begin, content)
    assert payload.buffer.tobytes() == b"".join(parts)


@settings(max_examples=200, deadline=None)
@given(cut_payloads(), st.data())
def test_a_lost_piece_is_noticed_at_the_next_one(cut, data):
    pieces = [piece for piece in pieces_of(*cut) if piece[1]]
    if len(pieces) < 2:
        return
    lost = data.draw(st.integers(0, len(pieces) - 2))
    payload = Incoming(sum(map(len, cut[0])))
    for begin, content in pieces[:lost]:
        put(payload, begin, content)
    with pytest.raises(WireError, match="missing"):
        put(payload, *pieces[lost + 1])
    assert not payload.is_complete
