"""Rewrite the Stripe replica's sources, written for Python 3.14, for Python 3.11.

    python downport.py TARGET

``seahaven`` and ``seahaven-stripe-world`` use newer syntax in a handful of
places: type aliases and generics by PEP 695, ``except A, B:`` without
parentheses, and f-strings with line breaks. Each is rewritten by a rule below;
what they do is left alone. The rules are for the pinned versions; when a newer
Python runs the project this file can go.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from pathlib import Path

PACKAGES = ("seahaven", "seahaven_stripe_world")

EXCEPT_LIST = re.compile(r"^(\s*except )([\w.]+(?:, *[\w.]+)+)( as \w+)?:", re.M)
TYPE_ALIAS = re.compile(r"^type (\w+) = (.+)$", re.M)
GENERIC_FUNCTION = re.compile(r"^(\s*def \w+)\[([^\]]*)\]\(", re.M)
GENERIC_CLASS = re.compile(r"^(class \w+)\[([^\]]*)\]:", re.M)
BROKEN_FSTRING = re.compile(r'f"\{\n((?:.|\n)*?)\n\s*\}([^"\n]*)"')
DOCSTRING = re.compile(r'\s*(?:"""(?:.|\n)*?"""|\'\'\'(?:.|\n)*?\'\'\')\s*\n')
ALIAS_VALUE = re.compile(r"\b(Refusal|ClockMode)\.__value__")

# Aliases that name themselves or classes defined later cannot be evaluated on
# the spot; as text they do for annotations.
FORWARD = re.compile(r"\bPathTrie|Ctx\[|World|Instance|NodeKey|HttpRe|Handler\]|Callable\[\.\.\.")

GENERIC_BASE = """\
class _Generic:
    def __class_getitem__(cls, _):
        return cls
"""


def downported(source: str) -> str:
    """One module's source for Python 3.11."""
    parameters: set[str] = set()

    def ungeneric(match: re.Match, tail: str) -> str:
        parameters.update(part.split("=")[0].split(":")[0].strip() for part in match[2].split(","))
        return match[1] + tail

    source = EXCEPT_LIST.sub(r"\1(\2)\3:", source)
    source = TYPE_ALIAS.sub(lambda match: f"{match[1]} = {_alias(match[2])}", source)
    source = GENERIC_FUNCTION.sub(lambda match: ungeneric(match, "("), source)
    source = GENERIC_CLASS.sub(lambda match: ungeneric(match, "(_Generic):"), source)
    source = ALIAS_VALUE.sub(r"\1", source)
    source = BROKEN_FSTRING.sub(_joined_fstring, source)
    head = "" if "from __future__ import annotations" in source else "from __future__ import annotations\n"
    docstring = DOCSTRING.match(source)
    at = docstring.end() if docstring else 0
    return source[:at] + head + _type_variables(parameters) + source[at:]


def _alias(value: str) -> str:
    return repr(value) if FORWARD.search(value) and not value.startswith("Literal") else value


def _joined_fstring(match: re.Match) -> str:
    expression = " ".join(line.strip() for line in match[1].split("\n"))
    return 'f"' + "{" + expression + "}" + match[2] + '"'


def _type_variables(parameters: set[str]) -> str:
    if not parameters:
        return ""
    lines = ["import typing as _t"]
    for name in sorted(parameters):
        bare = name.lstrip("*")
        lines.append(f"{bare} = _t.{'ParamSpec' if name.startswith('**') else 'TypeVar'}({bare!r})")
    return "\n".join(lines) + "\n" + GENERIC_BASE


def main() -> None:
    """Write the rewritten packages into the target folder."""
    target = Path(sys.argv[1])
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise SystemExit(f"{package} is not installed")
        folder = Path(spec.submodule_search_locations[0])
        shutil.copytree(folder, target / package, ignore=shutil.ignore_patterns("__pycache__"))
        for module in (target / package).rglob("*.py"):
            module.write_text(downported(module.read_text()))


if __name__ == "__main__":
    main()
