"""What the command line says of itself: help, examples, completion, and how fast it answers."""

from __future__ import annotations

import re
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from fedgmr_hpc import __version__
from fedgmr_hpc.cli import results, scale
from fedgmr_hpc.cli.command_line import build_parser, main
from fedgmr_hpc.cli.parser import Parser, parse

HEAVY = {"torch", "h5py", "numpy", "matplotlib", "scipy", "submitit", "mpi4py", "pydantic"}
PROGRAMS = ("python -m fedgmr_hpc", "fedgmr-hpc")


def walk(parser: Parser) -> Iterator[Parser]:
    """A parser and all parsers below it."""
    yield parser
    for each in parser.verbs().values():
        yield from walk(each)


def examples(parser: Parser) -> list[str]:
    """The examples in a parser's epilog, as typed."""
    text = (parser.epilog or "").partition("examples:\n")[2] % {"prog": parser.prog}
    return [line.strip() for line in text.splitlines() if line.startswith("  ")]


def words_of(example: str, program: str) -> list[str]:
    """What the program is given in an example, without launchers and shell syntax around it."""
    words = re.split(r"[>|]", example.partition(program)[2])[0].removesuffix(')"')
    return shlex.split(words)


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_fits_80_columns(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for parser in walk(build_parser(program)):
        wide = [line for line in parser.format_help().splitlines() if len(line) > 80]
        assert not wide, (parser.prog, wide)


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_verb_has_two_examples_that_parse(program: str) -> None:
    root = build_parser(program)
    for parser in walk(root):
        assert parser.description, parser.prog
        assert len(examples(parser)) >= 2, parser.prog
        for example in examples(parser):
            assert program in example
            arguments = parse(root, words_of(example, program))
            assert callable(arguments.call), example


def test_every_verb_is_listed_once_with_what_it_does() -> None:
    root = build_parser()
    lines = root.format_help().splitlines()
    for name, parser in root.verbs().items():
        assert sum(line.split()[:1] == [name] for line in lines) == 1, name
        assert any(line.startswith(f"  {name}") and parser.summary in line for line in lines)


def test_choices_are_those_of_the_package() -> None:
    from fedgmr_hpc.results.export import FORMS
    from fedgmr_hpc.scaling.runs import KINDS

    assert list(results.FORMATS) == list(FORMS)
    assert scale.SWEEPS == KINDS[2:]


def test_no_verb_shows_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "launch " in capsys.readouterr().out


def test_version_and_help_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in ((["--version"], __version__), (["study", "--help"], "submit")):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 0 and said in capsys.readouterr().out


def run_python(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)


def test_the_parser_imports_nothing_heavy() -> None:
    code = "from fedgmr_hpc.cli.command_line import build_parser; build_parser(); import sys; "
    ran = run_python(f"{code}print({HEAVY!r} & sys.modules.keys())")
    assert ran.stdout == "set()\n", ran.stderr


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("fedgmr_hpc.launch", ["clients.cont=3"]),
        ("fedgmr_hpc.launch", ["--config", "nowhere"]),
        ("fedgmr_hpc.launch", ["--resmue"]),
        ("fedgmr_hpc.cli.command_line", ["check", "clients.count=0"]),
        ("fedgmr_hpc.cli.command_line", ["keys", "nothing of the kind"]),
    ],
)
def test_words_are_checked_before_torch_is_imported(module: str, words: list[str]) -> None:
    code = f"import sys; from {module} import main; code = main(sys.argv[1:]); "
    ran = run_python(f"{code}print(code, {HEAVY!r} & sys.modules.keys() - {{'pydantic'}})", *words)
    assert ran.stdout == "2 set()\n", ran.stderr
    assert ran.stderr.startswith("fedgmr_hpc: error: ")


def test_a_mistyped_verb_is_answered_in_half_a_second() -> None:
    def spent_s() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    before_s = spent_s()  # of the processor: other work of the machine does not count
    ran = subprocess.run([sys.executable, "-m", "fedgmr_hpc", "lanuch"], capture_output=True)
    assert ran.returncode == 2 and b"did you mean 'launch'?" in ran.stderr
    assert spent_s() - before_s < 0.5


COMPLETE = """
source /dev/stdin
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
"$(complete -p fedgmr-hpc | sed 's/.*-F \\([^ ]*\\).*/\\1/')"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash on PATH")
@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        (["stu"], ["study"]),
        (["re"], ["replay", "report", "results"]),
        (["study", ""], ["run", "submit", "status", "report", "export"]),
        (["study", "run", "main", "--dry"], ["--dry-run"]),
        (["bench", "co"], ["codec", "compact"]),
        (["results", "export", "--format", "p"], ["parquet"]),
        (["completion", ""], ["bash", "zsh"]),
    ],
)
def test_bash_completes_verbs_options_and_choices(
    typed: list[str], completed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", "bash"]) == 0
    ran = subprocess.run(
        ["bash", "-c", COMPLETE, "bash", "fedgmr-hpc", *typed],
        input=capsys.readouterr().out,
        capture_output=True,
        text=True,
    )
    assert sorted(ran.stdout.split()) == sorted(completed), ran.stderr


def test_zsh_has_a_completion_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "zsh"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("#compdef fedgmr-hpc\n") and "partition" in shown
