"""What facts of ranks mean for a run: one `Finding` a check, in a line, with what to do about it.

Pure functions. Facts are those of probes.py, by rank; a rank that is silent has none.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median, median_low
from typing import Any, Literal

from fedgmr_hpc.data.cache import HOME_BYTES
from fedgmr_hpc.reporting.words import count_of
from fedgmr_hpc.training.kernels.torch_csr import TorchKernels

State = Literal["ok", "warn", "FAIL"]
Answers = Mapping[int, dict[str, Any]]

SLOW_PING, SLOW_PING_S = 10.0, 2e-3  # times the median of the ranks, and at least so long
SLOW_ANYWHERE_S = 0.05  # slow beside no other rank too: where there are two, or all are
MOST_NAMED = 4


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        check: Its name, as `doctor --help` lists them.
        text: What was found, in one line.
        advice: What to do about it.
    """

    check: str
    state: State
    text: str
    advice: str = ""

    def as_record(self) -> dict[str, str]:
        """Return the finding as a line of JSON has it."""
        return asdict(self)


def name_ranks(ranks: Iterable[int], places: Answers) -> str:
    """`rank 2 on n1`, `ranks 1 on n1, 2 on n2`; no host is known of a rank that never answered."""
    ranks = sorted(ranks)
    named = [f"{r} on {places[r]['host'] if r in places else 'an unknown host'}" for r in ranks]
    return ("rank " if len(ranks) == 1 else "ranks ") + some_of(named)


def some_of(texts: Sequence[str], between: str = ", ") -> str:
    """Return the first texts, and how many more there are."""
    rest = f" and {len(texts) - MOST_NAMED} more" if len(texts) > MOST_NAMED else ""
    return between.join(texts[:MOST_NAMED]) + rest


def judge_silence(check: str, ranks: Iterable[int], places: Answers, limit_s: float) -> Finding:
    """Return the finding on ranks that have stopped answering during a check."""
    text = f"silent for {limit_s:g} s: {name_ranks(ranks, places)}"
    pids = [f"{places[r]['pid']} on {places[r]['host']}" for r in sorted(ranks) if r in places]
    what = f"process {some_of(pids)}" if pids else "that process"
    advice = f"see whether {what} is stopped, swaps or hangs in its file system; --limit S waits"
    return Finding(check, "FAIL", text, f"{advice} longer")


def judge_errors(check: str, answers: Answers, places: Answers, advice: str = "") -> Finding | None:
    """Return what went wrong, each error once, with the ranks that have it unless all do; None if
    nothing did.
    """
    ranks_of: dict[str, list[int]] = defaultdict(list)
    for rank, facts in answers.items():
        if "error" in facts:
            ranks_of[facts["error"]].append(rank)
    if not ranks_of:
        return None
    texts = [
        error if len(ranks) == len(answers) else f"{name_ranks(ranks, places)}: {error}"
        for error, ranks in ranks_of.items()
    ]
    return Finding(check, "FAIL", some_of(texts, "; "), advice)


def judge_precision(places: Answers, precision: str, deterministic: bool) -> Finding | None:
    """Judge whether every device that trains can compute as the run wants; None if nothing is
    wrong.
    """
    training = {rank: facts for rank, facts in places.items() if rank or len(places) == 1}
    reasons = {rank: facts["lacks"] for rank, facts in training.items() if facts.get("lacks")}
    if reasons:
        text = f"no {precision} on {name_ranks(reasons, places)}: {next(iter(reasons.values()))}"
        return Finding("ranks", "FAIL", text, "train.precision=fp32, or other hosts")
    if not deterministic and all(facts["device"] == "cpu" for facts in training.values()):
        text = "train.deterministic=false has no effect on CPUs, which repeat themselves anyway"
        return Finding("ranks", "warn", text, "leave it away, or use GPUs")
    return None


def judge_kernels(places: Answers) -> Finding | None:
    """Judge whether all ranks have the same kernels of compact layers, and fast ones; None if
    nothing is wrong.
    """
    ranks_of: dict[str, list[int]] = defaultdict(list)
    for rank, facts in places.items():
        if facts.get("kernels"):
            ranks_of[facts["kernels"]].append(rank)
    advice = "build the compiled ones, see docs/compact-training.md"
    if len(ranks_of) > 1:
        named = [f"{name} on {name_ranks(ranks, places)}" for name, ranks in ranks_of.items()]
        return Finding("ranks", "FAIL", f"different kernels: {some_of(named, '; ')}", advice)
    if TorchKernels.name in ranks_of:
        text = f"compact layers are computed by torch's sparse matrices ({TorchKernels.name})"
        return Finding("ranks", "warn", f"{text}, which are slower", advice)
    return None


def judge_places(places: Answers) -> Finding:
    """Judge ranks, hosts, cores and devices, and ranks that share what one alone should have."""
    hosts = Counter(facts["host"] for facts in places.values())
    crowded, shared = _crowded_cores(places), _shared_devices(places)
    devices = {(f["host"], _device_id(f)) for f in places.values() if f["device"] != "cpu"}
    on = count_of(len(devices), "CUDA device") if devices else "cpu"
    text = f"{count_of(len(places), 'rank')} on {count_of(len(hosts), 'host')}, {on}"
    kernels = {facts["kernels"] for facts in places.values() if facts.get("kernels")}
    text += "".join(f", kernels {name}" for name in sorted(kernels))
    hidden = {f["host"]: note for f in places.values() if (note := f.get("hidden_gpus"))}
    if not crowded and not shared and not hidden:
        return Finding("ranks", "ok", text)
    advice = [
        "fewer ranks a host, or let the launcher bind each to a core of its own" * bool(crowded),
        "one client rank for each GPU (--ntasks-per-node, --gpus-per-node)" * bool(shared),
        *set(hidden.values()),
    ]
    texts = [text, *crowded, *shared, *(f"{host}: its GPUs are hidden" for host in hidden)]
    return Finding("ranks", "warn", some_of(texts, "; "), "; ".join(filter(None, advice)))


def _crowded_cores(places: Answers) -> list[str]:
    """Return hosts on which more ranks must run on some cores than these are."""
    found = []
    for host in dict.fromkeys(facts["host"] for facts in places.values()):
        sets = [frozenset(f["cores"]) for f in places.values() if f["host"] == host and f["cores"]]
        for cores in sorted({*sets, frozenset[int]().union(*sets)}, key=len):
            confined = sum(own <= cores for own in sets)
            if confined > len(cores):
                found.append(f"{host}: {confined} ranks share {count_of(len(cores), 'core')}")
                break
    return found


def _shared_devices(places: Answers) -> list[str]:
    ranks_of: dict[tuple[str, str], list[int]] = defaultdict(list)
    for rank, facts in places.items():
        if facts["device"] != "cpu":
            ranks_of[facts["host"], _device_id(facts)].append(rank)
    return [
        f"ranks {', '.join(map(str, ranks))} share {device} of {host}"
        for (host, device), ranks in ranks_of.items()
        if len(ranks) > 1
    ]


def _device_id(facts: Mapping[str, Any]) -> str:
    """By its UUID where there is one: where each process sees one device, all are cuda:0."""
    return facts.get("uuid") or str(facts["device"])


def judge_pings(trips: Mapping[tuple[int, int], float | None], places: Answers) -> Finding:
    """Judge round trips in seconds by pair, None where there was no answer."""
    if not trips:
        return Finding("ping", "ok", "one rank: nothing to ping")
    deaf = [f"{a} and {b}" for (a, b), trip in trips.items() if trip is None]
    if deaf:
        advice = "the network between these hosts: firewall, interface (UCX_NET_DEVICES, "
        return Finding("ping", "FAIL", f"no answer between ranks {some_of(deaf)}", f"{advice}...)")
    known = {pair: trip for pair, trip in trips.items() if trip is not None}
    (a, b), worst = max(known.items(), key=lambda item: item[1])
    usual = median(known.values())
    text = (
        f"{count_of(len(known), 'pair')}: median {usual * 1e6:,.0f} us, slowest "
        f"{worst * 1e6:,.0f} us ({name_ranks((a, b), places)})"
    )
    slow = _slow_answers(known)
    if not slow:
        return Finding("ping", "ok", text)
    advice = "see what else runs on that host, and over which network it talks"
    return Finding("ping", "warn", f"slow to answer: {name_ranks(slow, places)}; {text}", advice)


def _slow_answers(trips: Mapping[tuple[int, int], float]) -> list[int]:
    """Find ranks that are slow with every other: by the best trip of each, since a slow rank
    spoils all its own.

    Two ranks have one trip, which is their median: there only what is slow by any measure shows.
    """
    best: dict[int, float] = {}
    for pair, trip in trips.items():
        for rank in pair:
            best[rank] = min(best.get(rank, trip), trip)
    least = min(max(SLOW_PING * median_low(best.values()), SLOW_PING_S), SLOW_ANYWHERE_S)
    return [rank for rank, trip in best.items() if trip > least]


Rates = tuple[float, float]  # bytes per second from rank 0 and to it


def judge_rates(
    rates: Mapping[int, Rates],
    together: Rates | None,
    needed: Mapping[int, Rates] | None,
    places: Answers,
) -> Finding:
    """Judge rates, measured one by one and all together, against those that are needed.

    Args:
        needed: by rank; None on the virtual clock.
    """
    if not rates:
        return Finding("links", "ok", "one rank: no links")
    slow_down = min(rates, key=lambda rank: rates[rank][0])
    slow_up = min(rates, key=lambda rank: rates[rank][1])
    text = (
        f"at least {megabytes(rates[slow_down][0])}/s to a rank (rank {slow_down}), "
        f"{megabytes(rates[slow_up][1])}/s from one (rank {slow_up})"
    )
    if together:
        text += f"; all at once {megabytes(together[0])}/s out, {megabytes(together[1])}/s in"
    if needed is None:
        return Finding("links", "ok", f"{text}; the virtual clock asks for none")
    short = [*_short_links(rates, needed, places), *_short_server(together, needed)]
    if short:
        advice = "a larger time_scale, clients on more hosts, or slower links in the configuration"
        return Finding("links", "FAIL", some_of(short, "; "), advice)
    down, up = (megabytes(max(pair[way] for pair in needed.values())) for way in (0, 1))
    return Finding("links", "ok", f"{text}; a rank asks for at most {down}/s and {up}/s")


def _short_links(
    rates: Mapping[int, Rates], needed: Mapping[int, Rates], places: Answers
) -> list[str]:
    return [
        f"{name_ranks([rank], places)}: {megabytes(rates[rank][way])}/s {direction}, its clients "
        f"ask for {megabytes(asked[way])}/s"
        for rank, asked in needed.items()
        for way, direction in enumerate(("to it", "from it"))
        if rank in rates and rates[rank][way] < asked[way]
    ]


def _short_server(together: Rates | None, needed: Mapping[int, Rates]) -> list[str]:
    sums = [sum(pair[way] for pair in needed.values()) for way in (0, 1)]
    return [
        f"rank 0: {megabytes(together[way])}/s {direction} with all ranks at once, all clients "
        f"ask for {megabytes(sums[way])}/s"
        for way, direction in enumerate(("out", "in"))
        if together is not None and together[way] < sums[way]
    ]


def judge_mpi(transport: str, library: str, aware: bool | None, settings: Sequence[str]) -> Finding:
    """Say whether MPI could take CUDA memory: for information, nothing here needs it."""
    if transport == "inproc":
        return Finding("mpi", "ok", "one process: no messages to send")
    says = {True: "CUDA-aware", False: "not CUDA-aware", None: "does not say if it is CUDA-aware"}
    what = f"{library}, {says[aware]}" if library else f"no MPI, ranks talk over {transport}"
    given = f"; set: {some_of(settings)}" if settings else ""
    return Finding("mpi", "ok", f"{what} (not needed: frames leave from host memory){given}")


def judge_data(answers: Answers, places: Answers, name: str) -> Finding:
    """Judge whether all ranks read the same bytes and cut them the same way."""
    if failed := judge_errors("data", answers, places):
        return failed
    digests = Counter(facts["digest"] for facts in answers.values())
    usual, _ = digests.most_common(1)[0]
    odd = [rank for rank, facts in answers.items() if facts["digest"] != usual]
    if odd:
        text = (
            f"other bytes than the others ({usual}): {name_ranks(odd, places)} "
            f"({answers[odd[0]]['digest']})"
        )
        advice = f"compare data.root and numpy there, remove {answers[odd[0]]['folder']} there"
        return Finding("data", "FAIL", text, advice)
    facts = answers[min(answers)]
    counts = f"{facts['num_train']:,} training and {facts['num_test']:,} test samples"
    ranks = f"on {count_of(len(answers), 'rank')}" if len(answers) > 1 else "here"
    size = facts.get("cache_bytes", 0)
    text = f"{name}: {counts}, xxh3 {usual} {ranks}; {megabytes(size)} in {facts['folder']}"
    in_home = facts.get("is_default_cache") and size > HOME_BYTES
    advice = "data.cache (or the site's scratch) names a folder outside the home"
    return Finding("data", "warn" if in_home else "ok", text, advice)


def judge_results(facts: Mapping[str, Any], locking: str, env_locking: str | None) -> Finding:
    """Judge whether a result file can be made, locked and followed."""
    if "error" in facts:
        error, advice = facts["error"], "name another place with results.path"
        if locking != "off" and ("lock" in error or "not done" in error):
            advice = "where files cannot be locked, or locking hangs: results.locking=off"
        return Finding("results", "FAIL", error, advice)
    locks = {None: "locks off", True: "locks work", False: "no locks, and none are needed"}
    text = (
        f"{facts['folder']} ({facts['file_system']}): {locks[facts['has_locks']]}, a file was "
        f"made, followed and removed in {1e3 * facts['took_s']:.0f} ms"
    )
    if env_locking is not None:
        text += f"; HDF5_USE_FILE_LOCKING={env_locking} outranks results.locking"
    if facts["exists"]:
        advice = "launch --resume continues it; or name another file with results.path"
        return Finding("results", "warn", f"results.path exists already; {text}", advice)
    return Finding("results", "ok", text)


def megabytes(num_bytes: float) -> str:
    """`12.5 MB`, `1,200 MB`, `23.1 GB`."""
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e10 else f"{num_bytes / 1e6:,.4g} MB"
