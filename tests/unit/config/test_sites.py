"""Site files, and the shell lines made from them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from fedgmr_hpc.cli.command_line import main
from fedgmr_hpc.config.sites import Site, load_site, render_exports, site_names
from fedgmr_hpc.config.yaml_file import configs_dir


def write(folder: Path, text: str) -> Path:
    path = folder / "site.yaml"
    path.write_text(text)
    return path


def test_keys_become_the_variables_of_sbatch_and_of_the_scripts(tmp_path: Path) -> None:
    text = "partition: gpu\ngpus_per_node: 4\nmem: 16G\nmodules: [gcc/13, ompi]\nmax_requeues: 0\n"
    site = load_site(write(tmp_path, text + "data: /d\nenv: {NCCL_IB_HCA: mlx5, UCX_N: 2}\n"))
    assert render_exports(site, {}).splitlines() == [
        "export SBATCH_PARTITION=gpu",
        "export SBATCH_GPUS_PER_NODE=4",
        "export SBATCH_MEM_PER_NODE=16G",
        "export FEDGMR_MODULES='gcc/13 ompi'",
        "export FEDGMR_DATA=/d",
        "export FEDGMR_MAX_REQUEUES=0",
        "export NCCL_IB_HCA=mlx5",
        "export UCX_N=2",
    ]


def test_a_site_that_says_nothing_exports_nothing(tmp_path: Path) -> None:
    assert render_exports(load_site(write(tmp_path, "# nothing\n")), {}) == ""


def test_paths_are_filled_in_from_the_environment() -> None:
    site = Site(scratch="/s/$USER/x", venv="~/v", data="${DATA}", results="a~b")
    lines = render_exports(site, {"USER": "me", "HOME": "/h", "DATA": "/d e"}).splitlines()
    assert lines == [
        "export FEDGMR_VENV=/h/v",
        "export FEDGMR_DATA='/d e'",
        "export FEDGMR_SCRATCH=/s/me/x",
        "export FEDGMR_RESULTS='a~b'",
    ]


def test_an_unset_variable_in_a_path_is_named() -> None:
    with pytest.raises(ValueError, match=r"^data must .* \(got '\$DATA/x'\): \$DATA is not set"):
        render_exports(Site(data="$DATA/x"), {})


def test_paths_that_are_not_here_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"venv: /nope\ndata: /nowhere\nscratch: {tmp_path}\nresults: made/by/jobs\n"
    assert main(["site", str(write(tmp_path, text))]) == 0
    shown = capsys.readouterr()
    assert shown.err.splitlines() == [
        "site: venv: /nope does not exist on this machine",
        "site: data: /nowhere does not exist on this machine",
    ]
    assert len(shown.out.splitlines()) == 4


def test_a_shell_reads_odd_values_back() -> None:
    lines = render_exports(Site(env={"ODD": "it's $(date) `x`"}), {})
    shown = subprocess.run(
        ["sh", "-c", f'{lines}\nprintf %s "$ODD"'], capture_output=True, text=True, check=True
    )
    assert shown.stdout == "it's $(date) `x`"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("partion: x", "partion is not a key; did you mean 'partition'?"),
        ("mpi: Open MPI", "mpi must be auto, mpirun, torch, torchrun, or a plugin"),
        ("time_limit: 60", "time_limit must be text (got 60)"),
        ("mem: 16 GB", "mem must be memory as Slurm writes it"),
        ("mem: 16", 'such as "0" (got 16)'),
        ("modules: gcc", "modules must be a list (got 'gcc')"),
        (
            "plugins: [a b.py]",
            "plugins.0 must be a module or a file's path, without spaces (got 'a b.py')",
        ),
        ("max_requeues: -1", "max_requeues must be at least 0 (got -1)"),
        (
            "env: {A: true}",
            "true, false and 1.10 go in quotes (got true)",
        ),
        ("env: {A: 1.10}", "env.A must be text or a whole number"),
        ("env: {a b: 1}", "env.a b must be the name of a shell variable (got 'a b')"),
        ("- gpu", "must hold a mapping of keys (got ['gpu'])"),
        ("a: [", "not YAML"),
    ],
)
def test_a_wrong_site_is_told_what_is_allowed(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        load_site(write(tmp_path, text))
    assert said in str(caught.value) and "site.yaml" in str(caught.value)


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        load_site(write(tmp_path, "qso: x\ngpus_per_node: 0\nmodules: 3\n"))
    assert len(str(caught.value).splitlines()) == 3


def test_the_example_shows_every_key() -> None:
    shown = yaml.safe_load((configs_dir() / "sites" / "example.yaml").read_text())
    assert set(shown) == set(Site.model_fields)


def test_the_verb_prints_exports_names_and_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["site", "local"]) == 0
    assert "export FEDGMR_MPI=pmi2\n" in capsys.readouterr().out
    assert main(["site"]) == 0
    assert capsys.readouterr().out.split() == site_names() == ["example", "local"]
    assert main(["site", "nowhere"]) == 2
    assert "there is no site 'nowhere' (give a file, or one of 'example' and 'local')" in (
        capsys.readouterr().err
    )
