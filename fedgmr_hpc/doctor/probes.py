"""What one rank finds out about itself for `doctor`: place, data, results folder, steps, memory.

A probe returns numbers and words that travel as JSON; findings.py says what they mean.
"""

from __future__ import annotations

import os
import resource
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import xxhash

from fedgmr_hpc.config.errors import RunError
from fedgmr_hpc.config.records import Floats
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.data.cache import is_default
from fedgmr_hpc.data.datasets import SUBSET_SEED
from fedgmr_hpc.data.federated import FederatedData, Pool
from fedgmr_hpc.data.registry import plan_dataset
from fedgmr_hpc.doctor.estimate import first_densities, highest_densities
from fedgmr_hpc.doctor.host_facts import file_system, free_memory_bytes, mpi_is_cuda_aware, try_lock
from fedgmr_hpc.fl.masking import Masking
from fedgmr_hpc.fl.submodels import MaskSet
from fedgmr_hpc.fl.updates import Assignment
from fedgmr_hpc.models import run_weights
from fedgmr_hpc.runtime.preparation import check_inputs
from fedgmr_hpc.runtime.server import prunable_layers
from fedgmr_hpc.storage.hdf5_file import open_for_reading
from fedgmr_hpc.storage.process import own_cores, resident_bytes
from fedgmr_hpc.storage.rows import CheckpointRow
from fedgmr_hpc.storage.writer import ResultWriter
from fedgmr_hpc.training.evaluator import VersionEvaluator
from fedgmr_hpc.training.local_training import LocalTraining
from fedgmr_hpc.training.precision import lacks
from fedgmr_hpc.training.process_settings import keep_large_blocks
from fedgmr_hpc.training.sub_models import kernels_in_use
from fedgmr_hpc.transport.joining import hidden_devices_note
from fedgmr_hpc.transport.ranks import Launch, choose_device

TRAIN_S, TRAIN_TIMES = 2.0, 3  # of one client's training: until one of the two is reached
NO_DATA = "no data"
Facts = dict[str, Any]


class Probes:
    """The probes of one rank, by the names in `PROBES`."""

    def __init__(self, config: Config, rank: int, launch: Launch) -> None:
        self.config, self.rank, self.launch = config, rank, launch
        self.device = "cpu"  # until `place` has chosen
        self.data: FederatedData | None = None

    def run(self, name: str) -> Facts:
        """Return a probe's facts; what goes wrong is the fact `error`."""
        probes: Mapping[str, Callable[[], Facts]] = {
            "place": self.place,
            "data": self.read_data,
            "results": self.try_results,
            "steps": self.time_steps,
            "memory": self.memory,
        }
        try:
            return probes[name]()
        except (ValueError, OSError, RunError) as error:
            return {"error": str(error)}
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}

    def place(self) -> Facts:
        """Return where this rank runs, and on what."""
        wanted = self.config.device
        self.device = choose_device(self.launch, torch.cuda.device_count(), wanted)
        facts = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "cores": own_cores(),
            "threads": torch.get_num_threads(),
            "device": self.device,
            "lacks": lacks(self.config.train.precision, self.device),
            "kernels": kernels_in_use(self.config, self.device),
            "hidden_gpus": hidden_devices_note(torch.cuda.device_count(), wanted),
            "mpi_is_cuda_aware": mpi_is_cuda_aware(),
        }
        if self.device != "cpu":
            properties = torch.cuda.get_device_properties(self.device)
            facts |= {"gpu": properties.name, "uuid": str(getattr(properties, "uuid", ""))}
        return facts

    def read_data(self) -> Facts:
        """Open the data as a run does, which fills the cache; return facts with their digest."""
        self.data = FederatedData(self.config) if self.rank else check_inputs(self.config)
        cache = Path(self.config.data.cache).expanduser()
        dataset = self.data.dataset
        folder = cache / plan_dataset(self.config.data, seed=SUBSET_SEED).folder
        return {
            "digest": digest(self.data),
            "num_train": len(dataset.train),
            "num_test": len(dataset.test),
            "folder": str(folder),
            "cache_bytes": sum(path.stat().st_size for path in folder.iterdir()),
            "is_default_cache": is_default(cache),
        }

    def try_results(self) -> Facts:
        """Make, lock, follow and remove a small file as a run's server does."""
        path = Path(self.config.results.path or "results/run.h5").expanduser()
        with _folder(path.parent) as folder:
            began_s, locking = time.perf_counter(), self.config.results.locking
            has_locks = None if locking == "off" else try_lock(folder)
            _write_and_read(folder / f".doctor-{os.getpid()}.h5", locking)
            return {
                "folder": str(folder),
                "file_system": file_system(folder),
                "has_locks": has_locks,
                "took_s": time.perf_counter() - began_s,
                "exists": self.config.results.path is not None and path.exists(),
                "free_bytes": shutil.disk_usage(folder).free,
            }

    def time_steps(self) -> Facts:
        """Return seconds of a client's local training at the lowest and the highest density, and of
        one sample of an evaluation.
        """
        if self.data is None:
            raise RunError(NO_DATA)
        torch.set_num_threads(1)  # of this thread
        keep_large_blocks()
        config, training = self.config, LocalTraining(self.config, self.data, self.device)
        weights = run_weights(config, self.data.num_classes)
        ends = min(first_densities(config)), max(highest_densities(config))
        layers = prunable_layers(config, self.data.num_classes)
        masks = Masking(config.submodel, layers).cut(weights[: layers[-1].stop].copy(), ends, 0)
        client = max(0, self.rank - 1) % config.clients.count
        train = _Trial(training, masks, weights, client)
        train.run(ends[0])  # first calls
        train_s = [train.measure(density) for density in ends]
        evaluator = VersionEvaluator(config, self.data, self.device)
        evaluator.net.flat.copy_(torch.from_numpy(weights))
        num_samples = min(config.eval.chunk, self.data.pool_size("test"))
        num_tested = sum(map(self.data.pool_size, _tested_pools(training)))
        return {
            "densities": ends,
            "train_s": train_s,
            "sample_s": _time_sample(evaluator, num_samples),
            "num_samples": self.data.pool_size("validation") + num_tested,
            "num_tested": num_tested,
            "num_scored": self.data.pool_size("score"),
        }

    def memory(self) -> Facts:
        """Memory of this process now and at its most, and what its host or cgroup has left."""
        return {
            "rss_bytes": resident_bytes(),
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
            "free_bytes": free_memory_bytes(),
        }


class _Trial:
    """One client's local training, over and over."""

    def __init__(
        self, training: LocalTraining, masks: MaskSet, weights: Floats, client: int
    ) -> None:
        self.training, self.masks, self.client = training, masks, client
        self.packed, self.dense = masks.pack(weights[: masks.size]), weights[masks.size :].copy()
        self.num_runs = 0

    def run(self, density: float) -> None:
        masks, config = self.masks, self.training.config
        level = masks.level(density)
        count = masks.counts[level]
        at = None if masks.perm is None else torch.from_numpy(masks.perm[:count].astype(np.int64))
        task = Assignment(
            client=self.client,
            base_version=0,
            mask_id=masks.mask_id,
            level=level,
            density=density,
            num_kept=count,
            first_step=self.num_runs * config.train.steps,
            learning_rate=config.train.learning_rate,
            measure=False,
        )
        dense = torch.from_numpy(self.dense)
        self.training.train(task, torch.from_numpy(self.packed[:count]), dense, at)
        self.num_runs += 1

    def measure(self, density: float) -> float:
        """Return the median seconds of a local training at a density."""
        times: list[float] = []
        while sum(times) < TRAIN_S and len(times) < TRAIN_TIMES:
            began_s = time.perf_counter()
            self.run(density)
            times.append(time.perf_counter() - began_s)
        return median(times)


def _tested_pools(training: LocalTraining) -> tuple[Pool, ...]:
    """Return what a test passes over; static batch norms want a pass of their own."""
    return ("test", "norms") if training.layout.num_statistics else ("test",)


def _time_sample(evaluator: VersionEvaluator, num: int) -> float:
    """Return the seconds of one of `num` test samples; the first time pays for first calls."""
    for _ in range(2):
        began_s = time.perf_counter()
        evaluator.evaluate("test", 0, num)
        took_s = time.perf_counter() - began_s
    return took_s / num


def digest(data: FederatedData) -> str:
    """Return what ranks must agree on: the data's fingerprint, as a result has it, and who holds
    what.
    """
    state = xxhash.xxh3_64()
    for part in (*data.train_parts, *data.validation_parts):
        state.update(np.ascontiguousarray(part).data)
    return f"{data.fingerprint}/{state.hexdigest()[:8]}"


@contextmanager
def _folder(folder: Path) -> Iterator[Path]:
    """Yield a folder that is there; what had to be made for it goes again."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except OSError as error:
        raise OSError(f"cannot write in {folder}: {error.strerror or error}") from error
    finally:
        for each in missing:
            if each.is_dir() and not any(each.iterdir()):
                each.rmdir()


def _write_and_read(path: Path, locking: str) -> None:
    """Write a result file, and read it while it is open and when it is closed."""
    row = CheckpointRow(0, 0.0, 0, 0, 0.0, 0.0, 0.0)
    try:
        with ResultWriter(
            path,
            config_yaml="",
            provenance={},
            num_clients=1,
            num_weights=1,
            layout_json="",
            num_ranks=1,
            locking=locking,
        ) as writer:
            writer.append(row)
            _expect_row(path, writer.sync()["checkpoints"])
        _expect_row(path, 1)
    finally:
        path.unlink(missing_ok=True)


def _expect_row(path: Path, num_rows: int) -> None:
    with open_for_reading(path) as file:
        found = len(file["checkpoints/version"])
    if found != num_rows:
        raise OSError(f"a reader sees {found} rows of {num_rows} that were written")
