"""Prometheus' text format (version 0.0.4), read strictly."""

import re

_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\n"])*)"(?:,|$)')


def read(text: str) -> dict[str, dict[frozenset[tuple[str, str]], float]]:
    """Return each metric's values by labels; an AssertionError says what the format does not allow."""
    assert text.endswith("\n")
    found: dict[str, dict[frozenset[tuple[str, str]], float]] = {}
    helped: set[str] = set()
    kinds: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("# HELP "):
            name = line.split()[2]
            assert name not in helped, f"{name} is there twice"
            helped.add(name)
        elif line.startswith("# TYPE "):
            name, kind = line.split()[2:]
            assert name not in kinds, f"{name} is there twice"
            kinds[name] = kind
            found[name] = {}
        else:
            match = _SAMPLE.match(line)
            assert match is not None, line
            labels = match[2] or ""
            pairs = _LABEL.findall(labels)
            assert "".join(m[0] for m in _LABEL.finditer(labels)) == labels, line
            values = found[match[1]] if match[1] in found else found[re.sub("_(bucket|sum|count)$", "", match[1])]
            key = frozenset([*pairs, *([("", match[1])] if match[1] not in found else [])])
            assert key not in values, f"{line} is there twice"
            values[key] = float(match[3])
    assert helped == set(kinds)
    return found


def value(found: dict[str, dict[frozenset[tuple[str, str]], float]], name: str, **labels: str) -> float:
    """Return one sample's value."""
    return found[name][frozenset(labels.items())]
