"""Rank 0's side of `doctor`: asks the ranks, judges what they answer, prints a line a check.

A rank that falls silent or does not come to an end is not asked again; the check at which that
happens has failed, and says who it was.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property

from fedgmr_hpc.config.identity import method_label
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.doctor import budget, findings
from fedgmr_hpc.doctor.estimate import needed_rates
from fedgmr_hpc.doctor.findings import Finding, State
from fedgmr_hpc.doctor.host_facts import slurm_left_s
from fedgmr_hpc.doctor.probes import Facts, Probes
from fedgmr_hpc.models import Layout, run_layout
from fedgmr_hpc.reporting.console import say
from fedgmr_hpc.reporting.tables import as_text
from fedgmr_hpc.runtime.roles import EXIT_FAILED
from fedgmr_hpc.transport.contract import Tag
from fedgmr_hpc.transport.ping import Peer
from fedgmr_hpc.transport.ranks import name_library

WORK_LIMIT_S = 1200.0  # decoding a large data set; training some steps of a large model
PING_LIMITS = 3  # that a round of pings may take, if somebody is silent in it
TOGETHER_BYTES = 1 << 28  # of all ranks, when they are moved at once
COLORS: dict[State, str] = {"ok": "32", "warn": "33", "FAIL": "31"}
MPI_SETTINGS = (
    *("UCX_TLS", "UCX_NET_DEVICES", "OMPI_MCA_pml", "OMPI_MCA_btl", "MPICH_GPU_SUPPORT_ENABLED"),
    *("MPIR_CVAR_ENABLE_GPU", "I_MPI_OFFLOAD", "MV2_USE_CUDA"),
)


class Work:
    """A probe in a thread of its own, while this one answers the other ranks."""

    def __init__(self, probes: Probes, name: str) -> None:
        self.facts: Facts | None = None
        threading.Thread(target=self._run, args=(probes, name), daemon=True).start()

    def _run(self, probes: Probes, name: str) -> None:
        self.facts = probes.run(name)


class Checkup:
    """All checks in turn.

    Attributes:
        places: host and process of each rank that has joined, and more once it has answered.
        late: ranks that live, but still do what they were asked for long ago.
    """

    def __init__(self, config: Config, peer: Peer, probes: Probes) -> None:
        self.config, self.peer, self.probes = config, peer, probes
        self.places: dict[int, Facts] = {}
        self.late: set[int] = set()
        self.results: Facts = {}
        self.show: Callable[[str], None] = say

    def run(self, as_json: bool = False) -> int:
        """Run all checks and print a line for each as it ends.

        Args:
            as_json: Print one JSON object of all findings instead.

        Returns:
            The exit code: 1 where a check has failed.
        """
        done = []
        for finding in self.findings(show=_say_nothing if as_json else say):
            done.append(finding)
            if not as_json:
                say(render(finding))
        has_failed = any(finding.state == "FAIL" for finding in done)
        records = {"failed": has_failed, "findings": [each.as_record() for each in done]}
        say(json.dumps(records) if as_json else render_sum(done))
        return EXIT_FAILED if has_failed else 0

    def findings(self, show: Callable[[str], None]) -> Iterator[Finding]:
        """Yield the finding of each check as it ends.

        Args:
            show: Gets what is checked, and the table of where ranks run.
        """
        self.show = show
        config, peer = self.config, self.peer
        ranks = f"{peer.size} ranks over {peer.transport.name}" if peer.size > 1 else "one process"
        method = method_label(config)
        show(f"doctor: {config.data.name}, {config.model.name}, method {method}, {ranks}")
        checks = {
            "ranks": self._check_places,
            "ping": self._check_pings,
            "links": self._check_rates,
            "mpi": self._check_mpi,
            "data": self._check_data,
            "results": self._check_results,
            "time": self._check_time,
            "memory": self._check_memory,
            "disk": self._check_disk,
        }
        for name, check in checks.items():
            before = set(peer.transport.gone)
            try:
                finding = check()
            except ValueError:
                if self.probes.data is not None:
                    raise
                finding = Finding(name, "warn", "not known, see data")  # nor is the layout
            if lost := peer.transport.gone - before:
                finding = findings.judge_silence(name, lost, self.places, peer.limit_s)
            yield finding

    @cached_property
    def layout(self) -> Layout:
        """Where the model's weights lie; some models are made for the classes that the data have.

        Raises:
            ValueError: it cannot be said: there are no data or they do not fit.
        """
        data = self.probes.data
        return run_layout(self.config, None if data is None else data.num_classes)

    @property
    def ranks(self) -> list[int]:
        """Those that can be asked."""
        return [rank for rank in (0, *self.peer.others) if rank not in self.late]

    @property
    def training_ranks(self) -> list[int]:
        return [rank for rank in self.ranks if rank or self.peer.size == 1]

    def ask(self, probe: str, limit_s: float, ranks: Iterable[int]) -> dict[int, Facts]:
        """Return what a probe finds on each rank, without those that fall silent."""
        ranks, peer = list(ranks), self.peer
        for rank in set(ranks) - {0}:
            peer.tell(rank, Tag.TASK, {"probe": probe})
        work = Work(self.probes, probe) if 0 in ranks else None
        answers: dict[int, Facts] = {}

        def has_all() -> bool:
            if work is not None and work.facts is not None:
                answers[0] = work.facts
            self._collect(answers)
            return answers.keys() | peer.transport.gone >= set(ranks)

        if not peer.wait(has_all, limit_s):
            for rank in set(ranks) - answers.keys() - peer.transport.gone:
                self.late.add(rank)
                answers[rank] = {"error": f"not done after {limit_s:g} s"}
        return dict(sorted(answers.items()))

    def _collect(self, answers: dict[int, Facts]) -> None:
        inbox = self.peer.inbox
        while inbox:
            message = inbox.popleft()
            content = json.loads(bytes(message.payload))
            if message.tag == Tag.HELLO:
                self.places[message.source] = content
            elif message.source not in self.late:
                answers[message.source] = content

    def _check_places(self) -> Finding:
        answers = self.ask("place", self.peer.limit_s, self.ranks)
        known = {rank: facts for rank, facts in answers.items() if "error" not in facts}
        self.places |= known
        self.show(render_places(known, self.peer.size))
        advice = "see whether the CUDA driver works there, or set device=cpu"
        failed = findings.judge_errors("ranks", answers, self.places, advice)
        train = self.config.train
        wrong = findings.judge_precision(known, train.precision, train.deterministic)
        wrong = wrong or findings.judge_kernels(known)
        return failed or wrong or findings.judge_places(known)

    def _check_pings(self) -> Finding:
        ranks, peer = self.ranks, self.peer
        for rank in ranks[1:]:
            peer.tell(rank, Tag.TASK, {"probe": "ping", "ranks": ranks})
        answers: dict[int, Facts] = {0: {"trips": peer.ping_all(ranks)}}

        def has_all() -> bool:
            self._collect(answers)
            return answers.keys() | peer.transport.gone >= set(ranks)

        if not peer.wait(has_all, PING_LIMITS * peer.limit_s):
            late = set(ranks) - answers.keys() - peer.transport.gone
            self.late |= late
            answers |= {rank: {"trips": dict.fromkeys(map(str, ranks[:1]))} for rank in late}
        trips = {
            (rank, int(other)): trip
            for rank, facts in answers.items()
            for other, trip in facts["trips"].items()
        }
        return findings.judge_pings(trips, self.places)

    def _check_rates(self) -> Finding:
        config, peer = self.config, self.peer
        rates, together = peer.measure_rates(), None
        if len(rates) > 1:
            size = min(TOGETHER_BYTES // len(rates), TOGETHER_BYTES // 8)
            times = peer.move(list(rates), size)
            together = times and (len(rates) * size / times[0], len(rates) * size / times[1])
        needed = needed_rates(config, peer.size) if config.clock == "wall" and rates else None
        return findings.judge_rates(rates, together, needed, self.places)

    def _check_mpi(self) -> Finding:
        transport = self.peer.transport
        library = getattr(transport, "library", "")
        given = [f"{name}={os.environ[name]}" for name in MPI_SETTINGS if name in os.environ]
        aware = self.places[0].get("mpi_is_cuda_aware")
        return findings.judge_mpi(transport.name, library and name_library(library), aware, given)

    def _check_data(self) -> Finding:
        answers = self.ask("data", WORK_LIMIT_S, self.ranks)
        return findings.judge_data(answers, self.places, self.config.data.name)

    def _check_results(self) -> Finding:
        answers = self.ask("results", self.peer.limit_s, {0} - self.late)
        self.results = answers.get(0, {"error": "not tried: rank 0 is still at the data"})
        locking = os.environ.get("HDF5_USE_FILE_LOCKING")
        return findings.judge_results(self.results, self.config.results.locking, locking)

    def _check_time(self) -> Finding:
        answers = self.ask("steps", WORK_LIMIT_S, self.training_ranks)
        left_s = slurm_left_s(os.environ)
        return budget.judge_time(
            self.config, self.layout, answers, self.places, self.peer.size, left_s
        )

    def _check_memory(self) -> Finding:
        answers = self.ask("memory", self.peer.limit_s, self.ranks)
        is_alone = self.peer.size == 1
        return budget.judge_memory(
            self.config, self.layout.num_weights, answers, self.places, is_alone
        )

    def _check_disk(self) -> Finding:
        return budget.judge_disk(self.config, self.layout, self.results)


def _say_nothing(text: str) -> None:
    """Show nothing."""


def render_places(places: dict[int, Facts], size: int) -> str:
    """Return a table of where ranks run."""
    heads = ("rank", "host", "pid", "cores", "threads", "device", "role")
    rows = [
        [
            str(rank),
            facts["host"],
            str(facts["pid"]),
            as_spans(facts["cores"]),
            str(facts["threads"]),
            " ".join(filter(None, (facts["device"], facts.get("gpu"), facts.get("uuid")))),
            "server and clients" if size == 1 else "clients" if rank else "server",
        ]
        for rank, facts in places.items()
    ]
    return as_text(heads, rows) + "\n"


def as_spans(numbers: list[int]) -> str:
    """Return ascending numbers as `0-3,8`; `any` for none."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(f"{a}-{b}" if b > a else f"{a}" for a, b in spans) or "any"


def render(finding: Finding) -> str:
    """Return a finding as one line, with its advice in a second."""
    line = f"{finding.check:<9}{_colored(finding.state, finding.state)}"
    line += " " * (6 - len(finding.state)) + finding.text
    is_good = finding.state == "ok" or not finding.advice
    return line if is_good else f"{line}\n{' ' * 15}-> {finding.advice}"


def render_sum(done: list[Finding]) -> str:
    """Return how many checks ended in each state."""
    states = [finding.state for finding in done]
    worst = max(states, key=list(COLORS).index)
    words: dict[State, str] = {"ok": "ok", "warn": "with a warning", "FAIL": "failed"}
    counts = [f"{states.count(s)} {word}" for s, word in words.items() if s in states]
    return _colored(worst, f"{len(states)} checks: {', '.join(counts)}")


def _colored(state: State, text: str) -> str:
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{COLORS[state]}m{text}\x1b[0m"
