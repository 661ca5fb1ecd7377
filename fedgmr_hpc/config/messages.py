"""The sentences in which the package says what is wrong, one function for each form.

    restoration.trigger must be 'none' when submodel.kind is 'full' (got 'plateau')
    clock must be 'virtual' or 'wall' (got 'virtul'); did you mean 'virtual'?
    restoration.triger is not a key; did you mean 'restoration.trigger'?

Values appear as one types them in YAML: text in quotes, `true`, `null`, `0.5`, `[1, 0.5]`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

Condition = str | Mapping[str, Any]
MISSING_PLUGIN = "; is a plug-in missing (--plugin FILE, or plugins: in a file)?"
_MAX_SHOWN = 200  # characters of a value
_UNSAID = object()


def must(
    what: str,
    requirement: str,
    got: Any = _UNSAID,
    *,
    when: Condition = "",
    found: str = "",
    because: str = "",
) -> str:
    """Say what something must do: `WHAT must REQUIREMENT when CONDITION (got VALUE): BECAUSE`.

    Args:
        what: a dotted key, an option, a file or a column.
        requirement: the rest of the sentence, beginning with a verb: "have one value a client".
        got: the value found; it is shown as one types it.
        when: what makes this so: words, or other keys and their values.
        found: words in place of `got`, where the value itself would not help.
        because: the reason, where it is not obvious.

    Example:
        >>> must("clients.shares", "have 3 values", 2, when={"clients.count": 3})
        'clients.shares must have 3 values when clients.count is 3 (got 2)'
    """
    text = f"{what} must {requirement}"
    if when:
        text += f" when {when if isinstance(when, str) else _conditions(when)}"
    if found or got is not _UNSAID:
        text += f" (got {found or shown(got)})"
    return f"{text}: {because}" if because else text


def must_be(what: str, requirement: str, got: Any = _UNSAID, **others: Any) -> str:
    """Say what something must be; the keywords are those of `must`.

    Example:
        >>> must_be("run.max_rounds", "at least 1", 0)
        'run.max_rounds must be at least 1 (got 0)'
    """
    return must(what, f"be {requirement}", got, **others)


def unknown_choice(what: str, got: Any, choices: Iterable[str], when: Condition = "") -> str:
    """Say which choices there are, and which of them was probably meant.

    Example:
        >>> unknown_choice("clock", "virtul", ["virtual", "wall"])
        "clock must be 'virtual' or 'wall' (got 'virtul'); did you mean 'virtual'?"
    """
    known = list(choices)
    return must_be(what, listed(known), got, when=when) + did_you_mean(got, known)


def unknown_name(kind: str, got: Any, known: Iterable[str], or_else: str = "") -> str:
    """Say that a run, method, study, site or data set does not exist, and which was probably meant.

    Args:
        kind: what the name is of: "method", "study".
        or_else: what else could have been given, such as "a file".

    Example:
        >>> unknown_name("study", "mian", ["claims", "main"], or_else="a file")
        "there is no study 'mian'; did you mean 'main'?"
        >>> unknown_name("study", "x", ["claims", "main"], or_else="a file")
        "there is no study 'x' (give a file, or one of 'claims' and 'main')"
    """
    names = list(known)
    text = f"there is no {kind} {shown(str(got))}"
    if hint := did_you_mean(got, names):
        return text + hint
    if not names:
        return f"{text} (give {or_else})" if or_else else text
    return f"{text} (give {or_else + ', or ' if or_else else ''}one of {listed(names, 'and')})"


def unknown_key(key: str, siblings: Iterable[str], others: Iterable[str] = ()) -> str:
    """Say that a dotted key does not exist, and which one was probably meant.

    Args:
        siblings: the names that are known where the key stands.
        others: all dotted keys; one whose last name is the same is suggested, too, or is meant
            where the key has no section.
    """
    group, _, last = key.rpartition(".")
    names = list(siblings)
    near = [f"{group}.{name}".strip(".") for name in closest(last, names)]
    by_last = [(other, other.rpartition(".")[2]) for other in others]
    near += [other for other, name in by_last if name == last]
    meant = [other for other, name in by_last if not group and _means(last, name)]
    near += meant if len(meant) == 1 else []
    if near:
        return f"{key} is not a key; did you mean {shown(near[0])}?"
    return f"{key} is not a key (keys{f' of {group}' if group else ''}: {', '.join(names)})"


def did_you_mean(got: Any, choices: Iterable[str]) -> str:
    """Ask for the choice that `got` nearly is; empty where there is none."""
    near = closest(got, choices)
    return f"; did you mean {shown(near[0])}?" if near else ""


def closest(got: Any, choices: Iterable[str]) -> list[str]:
    """Return at most one choice: the one that `got` resembles most, if any."""
    if not isinstance(got, str):
        return []
    by_lower = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(got.lower(), by_lower, 1, 0.65) if len(got) > 2 else []
    meant = [low for low in by_lower if _means(got.lower(), low)]
    return [by_lower[low] for low in near or (meant if len(meant) == 1 else [])]


def _means(got: str, name: str) -> bool:
    """Return whether somebody may mean a name by its initials, as `lr` for `learning_rate`, or by
    one of its words, as `rounds` for `max_rounds`.
    """
    words = name.split("_")
    initials = "".join(word[:1] for word in words)
    return len(words) > 1 and (got == initials or got in words)


def listed(words: Iterable[str], last: str = "or") -> str:
    """Return quoted words with commas, and `last` before the last one."""
    quoted = [repr(str(word)) for word in words]
    return f" {last} ".join([", ".join(quoted[:-1]), quoted[-1]] if quoted[1:] else quoted)


def shown(value: Any) -> str:
    """Return a value as one types it in YAML, shortened where it is long."""
    text = _typed(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."


def _typed(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str | PurePath):
        return repr(str(value))
    if isinstance(value, float):
        return repr(float(value)).removesuffix(".0")
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_typed, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_typed(each)}' for key, each in value.items())}}}"
    return str(value)


def _conditions(values: Mapping[str, Any]) -> str:
    return " and ".join(f"{key} is {shown(value)}" for key, value in values.items())
