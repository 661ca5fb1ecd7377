"""What a study's folder keeps of its last run: the words of the command line, and whose they are.

    OUT/STEM/words.yaml     the words, for actions that are given none
    OUT/STEM/source.yaml    the study: its name in configs/studies, or the path of its file

STEM is that of the study's file, so two studies may mean one folder. The second is refused, unless
its file says the same; or the first one's is not there any more, so that it may have been moved.
"""

from __future__ import annotations

import json
from pathlib import Path

from fedgmr_hpc.config.messages import must_be
from fedgmr_hpc.config.overrides import leaves, only
from fedgmr_hpc.config.yaml_file import dump, parse
from fedgmr_hpc.study.study_file import find_study


def save_words(folder: Path, source: str, words: list[str]) -> None:
    """Save the words of a run of a study, and the study."""
    folder.mkdir(parents=True, exist_ok=True)
    _words_path(folder).write_text(dump(words))
    _source_path(folder).write_text(dump({"study": _name_of(source)}))


def with_saved(folder: Path, words: list[str]) -> list[str]:
    """Return `words`, or where they are plug-ins at most, the saved words and these plug-ins, too.

    Raises:
        ValueError: A word or the saved file is wrong.
    """
    path, named = _words_path(folder), only("plugins", words)
    if len(named) < len(words) or not path.exists():
        return words
    saved = [str(word) for word in parse(path.read_text()) or ()]
    if not named:
        return saved
    before = only("plugins", saved)
    plugins = [*leaves(before).get("plugins", []), *leaves(named).get("plugins", [])]
    one = f"plugins={json.dumps(list(dict.fromkeys(plugins)), ensure_ascii=False)}"
    return [one, *(word for word in saved if word not in before)]


def check_source(folder: Path, source: str) -> None:
    """Refuse a study whose folder is another's; older folders do not say whose they are.

    Raises:
        ValueError: It is; names both.
    """
    note = _source_path(folder)
    said = parse(note.read_text()) if note.exists() else None
    owner = said.get("study") if isinstance(said, dict) else None
    if not isinstance(owner, str) or owner == _name_of(source) or _is_same(owner, source):
        return
    because = f"{folder} has its words and report; give each its own --out"
    raise ValueError(must_be("STUDY", owner, source, because=because))


def _is_same(owner: str, source: str) -> bool:
    """Return whether two studies' files say the same, or there is no other one any more."""
    try:
        theirs = find_study(owner)
    except ValueError:
        return True
    return theirs.read_bytes() == find_study(source).read_bytes()


def _name_of(source: str) -> str:
    """Return what finds a study from any folder."""
    path = find_study(source)
    return str(path.resolve()) if path == Path(source) else source


def _words_path(folder: Path) -> Path:
    return folder / "words.yaml"


def _source_path(folder: Path) -> Path:
    return folder / "source.yaml"
