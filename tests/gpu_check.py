"""`make gpu-check`: all tests that need CUDA devices, `bench gpu` and the transports, as a report.

Prints a page to paste and ends in one JSON line. The exit code is 0 where all tests passed and all
measurements ran, 1 where some did not, and 2 on a machine without a CUDA device. Needs no network.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

import fedgmr_hpc
from fedgmr_hpc.bench.system import describe_system
from fedgmr_hpc.reporting.tables import as_text

HERE = Path(__file__).parent
MPS = "nvidia-cuda-mps"  # begins the names of its processes
TRANSPORTS = {
    "nccl": ("torchrun", "--standalone", "--nproc-per-node=2"),
    "gloo": ("torchrun", "--standalone", "--nproc-per-node=2"),
    "mpi": ("mpirun", "-n", "2", sys.executable),
}


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """What a command says and how it ends; 127 where it is not there."""
    try:
        return subprocess.run(words, capture_output=True, text=True, cwd=HERE.parent)
    except FileNotFoundError as error:
        return subprocess.CompletedProcess(words, 127, "", str(error))


def last_line(ended: subprocess.CompletedProcess[str]) -> str:
    """The last line of an error, or of what was said."""
    lines = (ended.stderr.strip() or ended.stdout.strip() or "said nothing").splitlines()
    return lines[-1]


def facts() -> dict[str, str]:
    """Devices, driver, libraries, and whether MPS shares the devices out."""
    count = torch.cuda.device_count()
    devices = [torch.cuda.get_device_properties(number) for number in range(count)]
    driver = run("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {
        "fedgmr_hpc": fedgmr_hpc.__version__,
        "devices": "; ".join(f"{d.name}, {d.total_memory / 1e9:.0f} GB" for d in devices),
        "driver": driver.stdout.splitlines()[0] if driver.stdout else last_line(driver),
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda}",
        "cudnn": str(torch.backends.cudnn.version()),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        "mps": "running" if is_running(MPS) else "not running",
    }


def is_running(name: str, root: Path = Path("/proc")) -> bool:
    """Whether a process has a name that begins so."""
    for path in root.glob("[0-9]*/comm"):
        try:
            if path.read_text().startswith(name):
                return True
        except OSError:
            continue  # it has just ended
    return False


def run_tests() -> dict[str, Any]:
    """Run the tests that are marked `gpu`, in this checkout."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tests.xml")
        own = ("-m", "gpu", f"--junitxml={path}", str(HERE))
        ended = run(sys.executable, "-m", "pytest", "-p", "no:rerunfailures", *own)
        if not path.exists():
            return {"passed": 0, "failed": {"pytest": last_line(ended)}, "skipped": {}}
        return read_tests(path.read_text())


def read_tests(xml: str) -> dict[str, Any]:
    """How many tests passed, which failed and why, how many were skipped for which reason."""
    passed, failed, skipped = 0, {}, Counter[str]()
    for case in ElementTree.fromstring(xml).iter("testcase"):
        outcomes = {part.tag: part.get("message", "") for part in case}
        name = f"{case.get('classname')}.{case.get('name')}"
        if wrong := outcomes.keys() & {"failure", "error"}:
            failed[name] = outcomes[wrong.pop()].partition("\n")[0]
        elif "skipped" in outcomes:
            skipped[outcomes["skipped"]] += 1
        else:
            passed += 1
    return {"passed": passed, "failed": failed, "skipped": dict(skipped)}


def run_bench(*words: str) -> dict[str, Any]:
    """The table that a benchmark prints and its record, or its error."""
    ended = run(sys.executable, "-m", "fedgmr_hpc", "bench", "gpu", *words)
    table, _, record = ended.stdout.rstrip().rpartition("\n")
    try:
        return {"code": ended.returncode, "table": table, "record": json.loads(record)}
    except ValueError:
        return {"code": ended.returncode or 1, "error": last_line(ended)}


def run_transports() -> list[dict[str, Any]]:
    """How fast a frame moves between two ranks, each on a device of its own."""
    rows = []
    for kind, (launcher, *words) in TRANSPORTS.items():
        start = [str(Path(sys.executable).with_name(launcher)), *words]
        ended = run(*start, str(HERE / "transfer_rates.py"), kind)
        if ended.returncode == 0:
            rows.append({"transport": kind, **json.loads(ended.stdout.strip().splitlines()[-1])})
        else:
            rows.append({"transport": kind, "error": last_line(ended)})
    return rows


def render(report: Mapping[str, Any]) -> str:
    """The page."""
    tests, bench, rows = report["tests"], report["bench"], report["transports"]
    counts = f"{tests['passed']} passed, {len(tests['failed'])} failed"
    lines = ["gpu-check", *(f"  {name:<11}{text}" for name, text in report["facts"].items())]
    lines.append(f"  {'tests':<11}{counts}, {sum(tests['skipped'].values())} skipped")
    lines += [f"    failed   {name}: {why}" for name, why in tests["failed"].items()]
    lines += [f"    skipped  {count}: {why}" for why, count in tests["skipped"].items()]
    lines += ["", "bench gpu", bench.get("error") or bench["table"]]
    if not rows:
        return "\n".join([*lines, "", "transports: NCCL between two ranks needs two devices"])
    heads = ("transport", "down\nGB/s", "up\nGB/s")
    table = as_text(heads, [_cells(row) for row in rows])
    return "\n".join([*lines, "", "a frame between two ranks, two devices", table, fastest(rows)])


def _cells(row: Mapping[str, Any]) -> tuple[str, str, str]:
    if "error" in row:
        return row["transport"], row["error"], "-"
    return row["transport"], f"{row['down_gb_per_s']:.2f}", f"{row['up_gb_per_s']:.2f}"


def fastest(rows: Sequence[Mapping[str, Any]]) -> str:
    """Which transport wins, in both directions together."""
    ran = [row for row in rows if "error" not in row]
    if not ran:
        return "no transport ran"
    best = max(ran, key=lambda row: 1 / (1 / row["down_gb_per_s"] + 1 / row["up_gb_per_s"]))
    return f"fastest: {best['transport']}"


def is_well(report: Mapping[str, Any]) -> bool:
    """Whether everything ran, and every test that ran passed."""
    tests = report["tests"]
    has_run = not any("error" in row for row in report["transports"])
    return bool(tests["passed"] and not tests["failed"] and not report["bench"]["code"] and has_run)


def main(*words: str) -> int:
    """Check this machine; `words` go to the benchmark. The exit code."""
    count = torch.cuda.device_count()
    if not count:
        print("gpu-check needs a CUDA device; torch sees none on this machine", file=sys.stderr)
        return 2
    report = {
        "facts": facts(),
        "tests": run_tests(),
        "bench": run_bench(*words),
        "transports": run_transports() if count > 1 else [],
    }
    print(render(report))
    report["bench"].pop("table", None)
    print(json.dumps(report | {"system": describe_system(), "passed": is_well(report)}))
    return 0 if is_well(report) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
