"""The state of a running server as a tree of numbers, words and arrays, and back."""

from __future__ import annotations

import time

from fedgmr_hpc.config.records import fields_of
from fedgmr_hpc.fl.events import Resumed
from fedgmr_hpc.fl.snapshot import coordinator_state, restore_coordinator
from fedgmr_hpc.fl.updates import Assignment, Update
from fedgmr_hpc.network.links import VirtualClock
from fedgmr_hpc.runtime.server import Server
from fedgmr_hpc.runtime.wall.pool import LivePool
from fedgmr_hpc.storage.checkpoint import Tree
from fedgmr_hpc.storage.rows import UpdateRow


def server_state(server: Server) -> Tree:
    """Return all that changes while a server runs.

    Call it between events only, when the ranks are idle.
    """
    pool, clock = server.pool, server.clock
    assert isinstance(clock, VirtualClock | LivePool)
    is_wall = isinstance(clock, LivePool)
    updates = {} if is_wall else pool.updates
    return {
        "coordinator": coordinator_state(server.coordinator),
        "clock": clock.state(),
        "ledger": server.ledger.state(),
        "log": server.log.state(),
        "now_s": server.now_s,
        "evaluator": server.evaluator.state(),
        "wall_s": server.wall_s(),
        "moved_bytes": server.moved_bytes,
        "unmerged": [fields_of(row) for row in server.unmerged],
        "in_flight": [] if is_wall else [task.as_json() for task in server.in_flight.values()],
        "updates": [{"rank": rank, **fields_of(update)} for update, rank in updates.values()],
        "memories": pool.collect_memories() if pool.is_placed and not is_wall else [],
    }


def restore_server(server: Server, state: Tree) -> None:
    """Take a new server to a saved state, whose arrays become its own."""
    pool, clock = server.pool, server.clock
    assert isinstance(clock, VirtualClock | LivePool)
    restore_coordinator(server.coordinator, state["coordinator"])
    clock.restore(state["clock"])
    server.ledger.restore(state["ledger"])
    server.log.restore(state["log"])
    server.now_s, server.base_bytes = state["now_s"], state["moved_bytes"]
    if "evaluator" in state:  # which older checkpoints lack
        server.evaluator.restore(state["evaluator"])
    server.began_s = time.perf_counter() - state["wall_s"]
    server.unmerged = [UpdateRow(**row) for row in state["unmerged"]]
    server.in_flight = {task["client"]: Assignment(**task) for task in state["in_flight"]}
    for fields in state["updates"]:
        rank = fields.pop("rank")
        pool.updates[fields["client"]] = (Update(**fields), rank)
    server.first_event = None
    if isinstance(clock, LivePool):
        server.first_event = Resumed(max(state["clock"]["now_s"], server.now_s))
    elif pool.is_placed:
        pool.give_memories(state["memories"])
