"""YAML and JSON text as plain values: several documents, bounded in size, depth and count, without surprises.

Built on the parser's events, not on its objects: an alias is refused before it multiplies, a duplicate key is an error
where the stock loader keeps the last, and nesting is counted instead of crashing the process.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

MAX_CHARACTERS: Final = 64 * 1024 * 1024
MAX_VALUES: Final = 200_000
MAX_DEPTH: Final = 64

_NULL: Final = frozenset(["", "~", "null", "Null", "NULL"])
# YAML 1.1's words, as Kubernetes' own reader takes them: `yes` is true for kubectl, too.
_TRUE: Final = frozenset("true True TRUE yes Yes YES on On ON".split())
_FALSE: Final = frozenset("false False FALSE no No NO off Off OFF".split())
_INT: Final = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_BASED: Final = re.compile(r"[-+]?0(?:x[0-9a-fA-F]+|b[01]+)")
_AMBIGUOUS: Final = re.compile(r"[-+]?(?:0[0-7_]+|[1-9][0-9]*_[0-9_]*)")
# No 1e3 and no 0o17: what YAML 1.1's writers leave unquoted is text, and stays it.
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+][0-9]+)?")
_SPECIAL_FLOAT: Final = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")


class TextError(ValueError):
    """The text is not YAML or JSON, or more than is sensible; the message says where."""


def documents(text: str) -> list[Any]:
    """Return the documents in `text` as plain values; empty documents are left out.

    Raises:
        TextError: it cannot be read.
    """
    if len(text) > MAX_CHARACTERS:
        raise TextError(
            f"it is larger than {MAX_CHARACTERS // 2**20} MiB; name an image instead of inlining the module"
        )
    if text.lstrip().startswith(("{", "[")):
        try:
            value = json.loads(text, object_pairs_hook=_unique)
        except (TextError, RecursionError) as error:
            raise TextError(str(error) if isinstance(error, TextError) else "it is nested too deeply") from None
        except ValueError:
            pass  # YAML's flow style begins the same way, and its parser says better where it fails
        else:
            _measure(value)
            return [value]
    return [value for value in _yaml(text) if value is not None]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in pairs:
        if key in out:
            raise TextError(f"the key {key!r} is there twice; remove one")
        out[key] = value
    return out


def _measure(value: Any) -> None:
    seen, level, depth = 0, [value], 0
    while level:
        depth += 1
        seen += len(level)
        if depth > MAX_DEPTH:
            raise TextError(f"it is nested more than {MAX_DEPTH} levels deep")
        if seen > MAX_VALUES:
            raise TextError(f"it holds more than {MAX_VALUES} values")
        level = [
            inner
            for item in level
            if isinstance(item, (dict, list))
            for inner in (item.values() if isinstance(item, dict) else item)
        ]


@dataclass(frozen=True, slots=True)
class _Value:
    """A value as it was written: `size` counts the values in it and `height` its levels, aliases spelled out.

    `merges` is a bare ``<<``, which as a key would take the fields of another mapping; quoted it is a key like others.
    """

    plain: Any
    size: int = 1
    height: int = 0
    merges: bool = False


_NO_KEY: Final = object()


@dataclass(slots=True)
class _Collection:
    """A collection that is being filled; `key` holds a mapping's key that waits for its value."""

    plain: dict[Any, Any] | list[Any]
    anchor: str | None
    key: Any = _NO_KEY
    size: int = 1
    height: int = 0

    def add(self, value: _Value, where: str) -> None:
        self.size += value.size
        self.height = max(self.height, value.height)
        item = value.plain
        if isinstance(self.plain, list):
            self.plain.append(item)
        elif self.key is _NO_KEY:
            if isinstance(item, (dict, list)):
                raise TextError(
                    f"a key must be a word, not {'an object' if isinstance(item, dict) else 'a list'}{where}"
                )
            if value.merges:
                raise TextError(f"merge keys (<<) are not supported{where}; write the fields out")
            if item in self.plain:
                raise TextError(f"the key {item!r} is there twice{where}; remove one")
            self.key = item
        else:
            self.plain[self.key] = item
            self.key = _NO_KEY


def _yaml(text: str) -> Iterator[Any]:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        yield from _Builder().run(yaml.parse(text, Loader=loader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        if "nesting depth" in (error.problem or ""):  # newer parsers count, too, and look ahead of what we have seen
            raise TextError(f"it is nested more than {MAX_DEPTH} levels deep{place}") from None
        raise TextError(f"it is not YAML{place}: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise TextError(f"it is not YAML: {error}") from None


class _Builder:
    """Values out of a stream of parser events."""

    def __init__(self) -> None:
        self._open: list[_Collection] = []
        self._anchors: dict[str, _Value] = {}
        self._root: Any = None
        self._total = 0

    def run(self, events: Any) -> Iterator[Any]:
        """Yield the documents."""
        import yaml

        for event in events:
            where = f" (line {event.start_mark.line + 1})" if event.start_mark else ""
            if isinstance(event, yaml.DocumentStartEvent):
                self._root, self._anchors = None, {}
            elif isinstance(event, yaml.DocumentEndEvent):
                yield self._root
            elif isinstance(event, yaml.CollectionStartEvent):
                _plain_tag(event.tag, where)
                self._deepen(len(self._open) + 1, where)
                empty: dict[Any, Any] | list[Any] = {} if isinstance(event, yaml.MappingStartEvent) else []
                self._open.append(_Collection(empty, event.anchor))
            elif isinstance(event, yaml.CollectionEndEvent):
                done = self._open.pop()
                self._take(_Value(done.plain, done.size, done.height + 1), done.anchor, 1, where)
            elif isinstance(event, yaml.ScalarEvent):
                bare = event.value == "<<" and event.tag is None and event.implicit[0]
                self._take(_Value(_scalar(event, where), merges=bare), event.anchor, 1, where)
            elif isinstance(event, yaml.AliasEvent):
                known = self._anchors.get(event.anchor or "")
                if known is None:
                    raise TextError(f"*{event.anchor} refers to nothing before it{where}")
                self._deepen(len(self._open) + known.height, where)
                self._take(known, None, known.size, where)

    def _deepen(self, depth: int, where: str) -> None:
        if depth > MAX_DEPTH:
            raise TextError(f"it is nested more than {MAX_DEPTH} levels deep{where}")

    def _take(self, value: _Value, anchor: str | None, cost: int, where: str) -> None:
        """Put a whole value where it belongs."""
        if anchor:
            self._anchors[anchor] = value
        self._total += cost
        if self._total > MAX_VALUES:
            raise TextError(f"it holds more than {MAX_VALUES} values{where}")
        if self._open:
            self._open[-1].add(value, where)
        else:
            self._root = value.plain


def _plain_tag(tag: str | None, where: str) -> None:
    if tag not in (None, "!", "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
        raise TextError(f"the tag {tag} is not supported{where}; remove it")


def _scalar(event: Any, where: str) -> Any:
    text: str = event.value
    if event.tag == "tag:yaml.org,2002:str" or (event.tag is None and not event.implicit[0]) or event.tag == "!":
        return text
    if event.tag is not None:
        raise TextError(f"the tag {event.tag} is not supported{where}; remove it")
    if text in _NULL:
        return None
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    if _INT.fullmatch(text) or _BASED.fullmatch(text):
        if len(text) > 4000:
            raise TextError(f"a number of {len(text)} digits{where}; put it in quotes")
        return int(text, 0 if _BASED.fullmatch(text) else 10)
    if _AMBIGUOUS.fullmatch(text):
        raise TextError(f"{text} is read as octal or decimal, depending on the reader{where}; put it in quotes")
    if _FLOAT.fullmatch(text):
        return float(text)
    if _SPECIAL_FLOAT.fullmatch(text):
        return float(text.lower().replace(".", ""))
    return text
