"""The coordinator's state as plain numbers, words and arrays, and back.

Everything that an event can change is in it; what follows from the configuration (rules, layers,
rungs, shares) is not, so a state fits a coordinator that was made from the same configuration.
Random draws are keyed by version and client (config/randomness.py) and have no state. Mask sets are
shared by id, as they are in the coordinator. Not while a refresh is under way.

Shapes: C clients, P prunable entries, K kept entries, D dense entries.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from fedgmr_hpc.config.records import fields_of
from fedgmr_hpc.fl.clients import Client
from fedgmr_hpc.fl.coordinator import Coordinator
from fedgmr_hpc.fl.submodels import MaskSet, read_masks
from fedgmr_hpc.fl.updates import Assignment


def coordinator_state(coordinator: Coordinator) -> dict[str, Any]:
    """Return what `restore_coordinator` takes back; its arrays are the coordinator's own."""
    c = coordinator
    flying = [client.masks for client in c.clients if client.masks is not None]
    masks = {each.mask_id: each for each in (c.masks, *c.buffer.masks, *flying)}
    return {
        "version": c.version,
        "same_since": c.same_since,
        "is_last": c.is_last,
        "ready_s": c.ready_s,
        "quarantined": sorted(c.quarantined),
        "base_versions": c.base_versions,
        "scores": list(c.scores.items()),
        "mask_id": c.masks.mask_id,
        "masks": [fields_of(each) for each in masks.values()],
        "packed": c.packed,
        "dense": c.dense,
        "clients": [_client_state(client) for client in c.clients],
        "rule": c.rule.state.state(),
        "masking": c.masking.state(),
        "restoration": c.restoration.state(),
        "admission": c.admission.state(),
        "selection": c.selection.state(),
        "buffer": c.buffer.state(),
    }


def _client_state(client: Client) -> dict[str, Any]:
    flying, masks = client.in_flight, client.masks
    return fields_of(client) | {
        "in_flight": None if flying is None else flying.as_json(),
        "masks": None if masks is None else masks.mask_id,
        "cycle_times_s": list(client.cycle_times_s),
    }


def restore_coordinator(coordinator: Coordinator, state: dict[str, Any]) -> None:
    """Take a coordinator, new or not, back to a saved state, whose arrays become its own."""
    c = coordinator
    masks = {fields["mask_id"]: read_masks(fields) for fields in state["masks"]}
    c.version, c.is_last = state["version"], state["is_last"]
    c.same_since = state.get("same_since", 0)  # which older checkpoints lack
    c.ready_s = state.get("ready_s", 0.0)  # likewise
    c.quarantined = set(state["quarantined"])
    c.base_versions, c.packed, c.dense = state["base_versions"], state["packed"], state["dense"]
    c.scores = {client: score for client, score in state["scores"]}
    c.masks = masks[state["mask_id"]]
    for client, fields in zip(c.clients, state["clients"], strict=True):
        _restore_client(client, fields, masks)
    if "rule" in state:  # which older checkpoints lack
        c.rule.state.restore(state["rule"])
    c.masking.restore(state["masking"], c.masks)
    c.restoration.restore(state["restoration"])
    c.admission.restore(state["admission"])
    if "selection" in state:  # likewise
        c.selection.restore(state["selection"])
    c.buffer.restore(state["buffer"], masks)


def _restore_client(client: Client, fields: dict[str, Any], masks: dict[int, MaskSet]) -> None:
    client.steps, client.dispatched_s = fields["steps"], fields["dispatched_s"]
    flying, mask_id = fields["in_flight"], fields["masks"]
    client.in_flight = None if flying is None else Assignment(**flying)
    client.masks = None if mask_id is None else masks[mask_id]
    client.is_scored = fields["is_scored"]
    client.cycle_times_s = deque(fields["cycle_times_s"], client.cycle_times_s.maxlen)
