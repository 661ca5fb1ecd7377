"""The verbs besides launch: `python -m fedgmr_hpc VERB`, or the console script `fedgmr-hpc VERB`.

What each verb takes:

    launch ...                                   as python -m fedgmr_hpc.launch ...
    check [CONFIG] [--ranks N] [key=value ...]   validate without starting ranks, print the result
    doctor [CONFIG] [key=value ...]              check ranks, links, data, disk, time; under mpirun
    keys [PREFIX]                                every configuration key, its default and meaning
    methods [NAME]                               the method table, or one method explained
    prepare DATASET --root DIR [data.key=value]  what is missing, where to put it; build the cache
    partition [CONFIG] [key=value ...] [--out D] table and picture of which client holds what
    report RESULT... [--out DIR]                 tables and plots of runs: files, folders of them
    watch RESULT... [--every S] [--once]         a live table of runs: files, a pattern, a folder
    results verify|repair|merge|export FILE...   check and save result files; see results --help
    replay RESULT [key=value ...]                do a run over from its event log; also under mpirun
    agree [CONFIG] [--ranks N] [--points P] [key=value ...]
                                                 run and compare both clocks; or A.h5 B.h5
    study run|submit|status|report STUDY [--out DIR] [--ranks N] [key=value ...]
                                                 many runs, here or as Slurm jobs, their state,
                                                 tables and verdicts; see study --help
    feasibility RESULT... [--out DIR]            optimal density by accuracy, of runs with one each
    probe error CONFIG|RESULT... [key=value ...] aggregation error against density, and of masks
                                                 that change in flight; [--out DIR]
    scale strong|weak|sweep [CONFIG] --ranks 2,3,5,9 [...]
                                                 speed-up, efficiency, time split and the server's
                                                 limit, measured and predicted; see scale --help
    bench WHAT [--quick] [--ranks N]             codec, merge, mask, round, links, server, ...
    site [NAME]                                  a site's facts as shell lines for Slurm jobs
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

from fedgmr_hpc.config.errors import RunError
from fedgmr_hpc.config.files import describe_keys, load_config, render_config
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.config.sections import DataName

BENCHES = ("codec", "merge", "mask", "round", "links", "server", "clients", "memory")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb; returns its exit code: 0 done, 2 bad input."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["launch"]:
        from fedgmr_hpc.cli.launch import main as launch

        return launch(words[1:])
    if words[:1] == ["replay"]:
        from fedgmr_hpc.cli.launch import main as launch

        return launch(["--replay", *words[1:]])
    if words[:1] == ["doctor"]:
        from fedgmr_hpc.cli.doctor import main as doctor

        return _reported(lambda: doctor(words[1:]))
    if words[:1] == ["scale"]:
        from fedgmr_hpc.cli.scale import main as scale

        return _reported(lambda: scale(words[1:]))
    if words[:1] == ["study"]:
        from fedgmr_hpc.cli.study import main as study

        return _reported(lambda: study(words[1:]))
    if words[:1] == ["results"]:
        from fedgmr_hpc.cli.results import main as results

        return _reported(lambda: results(words[1:]))
    if words[:1] == ["watch"]:
        from fedgmr_hpc.results.watch import main as watch

        return _reported(lambda: watch(words[1:]))
    parser = _make_parser()
    arguments = parser.parse_intermixed_args(words)
    verbs = {
        "check": _check,
        "keys": _keys,
        "methods": _methods,
        "prepare": _prepare,
        "partition": _partition,
        "report": _report,
        "agree": _agree,
        "feasibility": _feasibility,
        "probe": _probe,
        "bench": _bench,
        "site": _site,
    }
    return _reported(lambda: verbs[arguments.verb](arguments.words, _checked(arguments)))


def _checked(arguments: argparse.Namespace) -> argparse.Namespace:
    if arguments.ranks is not None and arguments.ranks < 1:
        raise ValueError(f"--ranks: got {arguments.ranks}, allowed: at least 1")
    return arguments


def _reported(verb: Callable[[], int]) -> int:
    """The exit code of a verb; what a user can mend is said without a traceback."""
    try:
        code = verb()
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # a reader such as `head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except RunError as error:
        print(f"fedgmr_hpc: error: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        for line in str(error).splitlines():
            print(f"fedgmr_hpc: error: {line}", file=sys.stderr)
        return 2


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m fedgmr_hpc",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = (
        "launch",
        "check",
        "doctor",
        "keys",
        "methods",
        "prepare",
        "partition",
        "report",
        "watch",
        "results",
        "replay",
        "agree",
        "study",
        "feasibility",
        "probe",
        "scale",
        "bench",
        "site",
    )
    parser.add_argument("verb", choices=verbs)
    parser.add_argument("words", nargs="*", help="see above")
    parser.add_argument("--ranks", type=int, help="ranks, the server included")
    parser.add_argument("--root", help="folder of a data set's files")
    parser.add_argument("--cache", help="folder of decoded data sets")
    parser.add_argument("--out", help="folder for plots and reports")
    parser.add_argument("--quick", action="store_true", help="a smoke test of a benchmark")
    parser.add_argument("--points", type=float, help="agree: most of the accuracies' difference")
    return parser


def _one(words: list[str], what: str, allowed: Sequence[str] = ()) -> str:
    choices = f", one of {', '.join(allowed)}" if allowed else ""
    if len(words) != 1 or (allowed and words[0] not in allowed):
        raise ValueError(f"got {' '.join(words) or 'nothing'}, need {what}{choices}")
    return words[0]


def _load(words: list[str]) -> Config:
    """The configuration that the words name and change."""
    sources = [word for word in words if "=" not in word]
    what = "one configuration (values with spaces in quotes: 'key=...')"
    source = _one(sources, what) if sources else None
    return load_config(source, [word for word in words if "=" in word])


def _check(words: list[str], arguments: argparse.Namespace) -> int:
    from fedgmr_hpc.runtime.experiment import check_inputs

    config = _load(words)
    ranks = "" if arguments.ranks is None else _describe_ranks(config, arguments.ranks)
    lines = [_describe(config, check_inputs(config)), _describe_shares(config), ranks]
    print(render_config(config), end="")
    print("\n".join(f"# {line}" for line in lines if line))
    return 0


def _describe_shares(config: Config) -> str:
    counts = Counter(config.clients.bandwidth_shares())
    return "bandwidth shares: " + ", ".join(f"{n} x {share:g}" for share, n in counts.items())


def _describe(config: Config, data: object) -> str:
    from fedgmr_hpc.data.federated import FederatedData
    from fedgmr_hpc.models import run_layout

    assert isinstance(data, FederatedData)
    sizes = [len(part) for part in data.train_parts]
    layout = run_layout(config)
    return (
        f"{layout.num_weights:,} weights, {layout.num_prunable:,} prunable; "
        f"{sum(sizes):,} training samples, {min(sizes)} to {max(sizes)} a client; "
        f"{data.pool_size('validation'):,} validation, {data.pool_size('test'):,} test"
    )


def _describe_ranks(config: Config, ranks: int) -> str:
    if ranks == 1:
        return "1 rank: server and clients in one process"
    from fedgmr_hpc.runtime.experiment import describe_idle_ranks

    idle = describe_idle_ranks(config.clients.count, ranks)
    return f"{ranks} ranks: " + (
        idle or f"1 server, {ranks - 1} for {config.clients.count} clients"
    )


def _keys(words: list[str], arguments: argparse.Namespace) -> int:
    print(describe_keys(_one(words, "a prefix of keys") if words else ""))
    return 0


def _methods(words: list[str], arguments: argparse.Namespace) -> int:
    from fedgmr_hpc.config.methods import explain_method, render_methods

    if words:
        print(explain_method(_one(words, "a method")))
        return 0
    table, wrong = render_methods()
    print(table, flush=True)
    if wrong:
        raise ValueError("\n".join(wrong))
    return 0


def _prepare(words: list[str], arguments: argparse.Namespace) -> int:
    from fedgmr_hpc.data import describe_missing, prepare

    names = [word for word in words if "=" not in word]
    name = _one(names, "a data set", get_args(DataName))
    data = load_config(None, [word for word in words if "=" in word]).data
    given = {"root": arguments.root, "cache": arguments.cache}
    chosen = {key: value for key, value in given.items() if value is not None}
    data = data.model_copy(update={"name": name, **chosen})
    print(prepare(data))
    return 2 if describe_missing(name, data.root) else 0


def _partition(words: list[str], arguments: argparse.Namespace) -> int:
    from fedgmr_hpc.experiments.partition import report_partition

    config = _load(words)
    print(report_partition(config, arguments.out or "results/partition"))
    return 0


def _report(words: list[str], arguments: argparse.Namespace) -> int:
    from fedgmr_hpc.results.summary import make_report
    from fedgmr_hpc.results.watch import find_files

    is_folder = {word: Path(word).is_dir() for word in words}
    files = [path for word in words for path in (find_files([word]) if is_folder[word] else [word])]
    if not files:
        raise ValueError(f"got {' '.join(words) or 'nothing'}, need one or more result files")
    folder = Path(words[0]) if is_folder[words[0]] else Path(words[0]).parent
    print(make_report(files, arguments.out or folder / "report"))
    return 0


def _agree(words: list[str], arguments: argparse.Namespace) -> int:
    from fedgmr_hpc.experiments.agreement import MAX_POINTS, agree, agree_config

    points = MAX_POINTS if arguments.points is None else arguments.points
    if not points > 0:
        raise ValueError(f"--points: got {points:g}, allowed: above 0")
    overrides = [word for word in words if "=" in word]
    sources = [word for word in words if "=" not in word]
    if len(sources) >= 2 and all(source.endswith(".h5") for source in sources):
        virtual, wall, *others = sources
        agrees, text = agree(virtual, wall, arguments.out or Path(wall).parent, others, points)
        print(text)
        return 0 if agrees else 1
    source = _one(sources, "one configuration, or two result files") if sources else None
    ranks = 3 if arguments.ranks is None else arguments.ranks
    agrees, text = agree_config(source, overrides, ranks, arguments.out or "results/agree", points)
    print(text)
    return 0 if agrees else 1


def _feasibility(words: list[str], arguments: argparse.Namespace) -> int:
    from fedgmr_hpc.experiments.feasibility_report import report_files

    print(report_files(words, arguments.out or "results/feasibility"))
    return 0


def _probe(words: list[str], arguments: argparse.Namespace) -> int:
    from fedgmr_hpc.experiments.merge_error import probe_error

    _one(words[:1], "a probe", ("error",))
    print(probe_error(words[1:], arguments.out or "results/probe"))
    return 0


def _bench(words: list[str], arguments: argparse.Namespace) -> int:
    from fedgmr_hpc.bench.benchmarks import run_bench

    what = _one(words, "a benchmark", BENCHES)
    ranks = 3 if arguments.ranks is None else arguments.ranks
    return run_bench(what, quick=arguments.quick, ranks=ranks)


def _site(words: list[str], arguments: argparse.Namespace) -> int:
    from fedgmr_hpc.config.sites import load_site, render_exports, site_names

    print(render_exports(load_site(_one(words, "a site"))) if words else "\n".join(site_names()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
