"""What each rank did in a run, as rows of the result file."""

from __future__ import annotations

import socket
from typing import Any

from fedgmr_hpc.runtime.provenance import rank_software
from fedgmr_hpc.runtime.server import Server
from fedgmr_hpc.storage.process import resident_bytes
from fedgmr_hpc.storage.schema import RankRow


def rank_rows(server: Server) -> list[RankRow]:
    """One row a rank, after the run; of the client ranks since the last resume."""
    sent_bytes, received_bytes = server.moved_bytes
    mine: dict[str, Any] = {
        "host": socket.gethostname(),
        "device": "cpu",
        "num_tasks": server.coordinator.version,
        "train_s": 0.0,
        "wait_s": server.pool.wait_s,
        "rss_bytes": resident_bytes(),
        "sent_bytes": sent_bytes,
        "received_bytes": received_bytes,
        **rank_software(server.transport),
    }
    charged_bytes = server.ledger.server_up_bytes + server.ledger.server_down_bytes
    overhead_bytes = sent_bytes + received_bytes - charged_bytes
    if server.config.links.size == "nominal":
        overhead_bytes = 0  # charges are no frame lengths, so a difference means nothing
    return [
        RankRow(rank=0, overhead_bytes=overhead_bytes, **mine),
        *(
            RankRow(rank=rank, overhead_bytes=0, **stats)
            for rank, stats in sorted(server.pool.goodbyes.items())
        ),
    ]
