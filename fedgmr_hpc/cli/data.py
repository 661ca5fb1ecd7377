"""The verbs `prepare` and `partition`: a data set's files, and who holds what."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fedgmr_hpc.cli.arguments import (
    Verbs,
    add_configuration,
    add_out,
    add_plugin_option,
    add_verb,
    load,
    one_of,
    overrides_of,
)

if TYPE_CHECKING:
    from fedgmr_hpc.config.sections import DataConfig

PARTITION_DIR = "results/partition"
PREPARE = """\
Check the files of a data set and decode them into the cache, so that a run
starts at once. Where files are missing, the output says which, where to get
them and where to put them, and the exit code is 2.
"""
PREPARE_EPILOG = """\
examples:
  %(prog)s femnist --root /data
  %(prog)s cifar10 --root /data --cache /scratch
  %(prog)s npz --root mine.npz
"""
PARTITION = """\
Show which client holds which data of a configuration: a table of samples and
classes, and a picture.
"""
PARTITION_EPILOG = """\
examples:
  %(prog)s digits data.alpha=0.1
  %(prog)s femnist data.root=/data --out partition
"""


def add_to(verbs: Verbs) -> None:
    """Add the verbs."""
    parser = add_verb(
        verbs,
        "prepare",
        summary="check a data set's files and fill its cache",
        description=PREPARE,
        epilog=PREPARE_EPILOG,
        call=prepare,
    )
    parser.add_argument("dataset", metavar="DATASET", help="the name of the data set")
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="overrides of data.* keys")
    parser.add_argument("--root", metavar="DIR", help="folder of the files, as data.root")
    parser.add_argument("--cache", metavar="DIR", help="folder of decoded data, as data.cache")
    add_plugin_option(parser)
    parser = add_verb(
        verbs,
        "partition",
        summary="show which client holds which data",
        description=PARTITION,
        epilog=PARTITION_EPILOG,
        call=partition,
    )
    add_configuration(parser)
    add_out(parser, PARTITION_DIR, "folder of the picture")


def prepare(arguments: argparse.Namespace) -> int:
    """Print what was prepared, or what is missing."""
    data = _data_section(arguments)
    from fedgmr_hpc.data.datasets import prepare as prepare_files
    from fedgmr_hpc.data.registry import describe_missing

    print(prepare_files(data))
    return 2 if describe_missing(data.name, data.root) else 0


def _data_section(arguments: argparse.Namespace) -> DataConfig:
    """Return the keys of the data set that is named, the options as if they were words.

    Raises:
        ValueError: there is no such data set, or one line for every wrong key or value.
    """
    from fedgmr_hpc.config.choices.plugins import load_plugins, plugins_in
    from fedgmr_hpc.config.choices.registry import DATASETS
    from fedgmr_hpc.config.files import load_config
    from fedgmr_hpc.config.overrides import as_override, leaves, only

    words = overrides_of(arguments)
    load_plugins(plugins_in(leaves(only("plugins", words)), Path()))  # they may bring the data set
    name = _known(arguments.dataset, DATASETS.names)
    given = {"data.name": name, "data.root": arguments.root, "data.cache": arguments.cache}
    chosen = [as_override(key, value) for key, value in given.items() if value is not None]
    return load_config(None, [*chosen, *words]).data


def _known(name: str, names: tuple[str, ...]) -> str:
    try:
        return one_of(names)(name)
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"DATASET {error}") from None


def partition(arguments: argparse.Namespace) -> int:
    """Print the table, and where the picture is."""
    config = load(arguments)
    from fedgmr_hpc.experiments.partition import report_partition

    print(report_partition(config, arguments.out))
    return 0
