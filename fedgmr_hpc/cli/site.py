"""The verb `site`: a site's settings for Slurm jobs."""

from __future__ import annotations

import argparse

from fedgmr_hpc.cli.arguments import Verbs, add_verb

DESCRIPTION = """\
Print the settings of a computing site (partition, modules, folders, ...) as
shell lines, which the scripts in slurm/ read from the environment. Without
SITE, list the sites in configs/sites.
"""
EPILOG = """\
examples:
  %(prog)s
  eval "$(%(prog)s mysite.yaml)"
"""


def add_to(verbs: Verbs) -> None:
    """Add the verb."""
    parser = add_verb(
        verbs,
        "site",
        summary="print a site's settings as shell lines",
        description=DESCRIPTION,
        epilog=EPILOG,
        call=site,
    )
    parser.add_argument(
        "site", nargs="?", metavar="SITE", help="a YAML file, or the name of one in configs/sites"
    )


def site(arguments: argparse.Namespace) -> int:
    """Print the lines of a site, or the names of all."""
    from fedgmr_hpc.config.sites import load_site, render_exports, site_names

    if arguments.site is None:
        print("\n".join(site_names()))
    else:
        print(render_exports(load_site(arguments.site)))
    return 0
