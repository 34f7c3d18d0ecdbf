"""The signature policy: who must have signed which image. Text in, rules out; no cryptography is loaded here.

A TOML file, named by ``modules.signature_policy``::

    default = "require"                # of all other images: "allow", "deny" or "require" (then any key below will do)

    [keys.release]
    file = "release.pub"               # a PEM public key or X.509 certificate, relative to this file
    not_after = 2027-01-01T00:00:00Z   # from then on the key's signatures no longer count; optional

    [keys.old]
    file = "old.pub"

    [repositories."ghcr.io/org/*"]     # registry/repository, or https://host/path of a module by URL
    rule = "require"
    keys = ["release", "old"]          # all keys of this file when it is left out
    threshold = 1                      # how many of these keys must have signed; optional
    signed_as = "same"                 # what name the signature must give the image; optional

    [repositories."ghcr.io/org/legacy"]
    rule = "allow"

In patterns ``*`` stands for any characters (``/`` too) and ``?`` for one. Of the patterns that fit, the most specific
decides: the one with the most characters that are no wildcards; of equals the strictest (deny, require, allow). Without
``default`` everything else is allowed, with a warning, as without a policy.

``signed_as`` compares the name that a signature gives the image (cosign's ``docker-reference``): with the image's own
name (``"same"``), or with a pattern. Left out, nothing is compared, as ``cosign verify`` does: what is signed is the
digest, copies in other registries stay valid, and cosign's bundles hold no name at all, so that with ``signed_as`` only
signatures of the older form count. It is for keys that sign several images, one of which must not pass for another.

What is not understood is refused (`InvalidPolicy`), unknown keys too: a typing error must not open a door.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from proplet.oci.errors import InvalidPolicy, InvalidReference
from proplet.oci.reference import Reference

SAME_NAME = "same"

_MAX_POLICY_BYTES = 1024 * 1024
_MAX_KEY_BYTES = 64 * 1024
_MAX_RULES = 10_000
_KEY_NAME = re.compile(r"[A-Za-z0-9._@+-]{1,64}")
_PEM = re.compile(rb"-----BEGIN (PUBLIC KEY|RSA PUBLIC KEY|CERTIFICATE)-----")
_NO_POLICY = "no signature policy"
_UNSAID = "the policy says nothing of it"


class Rule(StrEnum):
    """What happens with an image."""

    ALLOW = "allow"
    DENY = "deny"
    REQUIRE = "require"


_STRICTNESS = {Rule.ALLOW: 0, Rule.REQUIRE: 1, Rule.DENY: 2}


@dataclass(frozen=True, slots=True)
class Key:
    """A trusted key: its name in the policy, its PEM text as read from ``file``, and when it stops counting."""

    name: str
    pem: bytes
    file: Path
    not_after: datetime | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What the policy says of one repository.

    ``threshold`` of ``keys`` must have signed. ``signed_as``: None, ``SAME_NAME`` or a pattern for the name in the
    signature. ``where`` names the rule for people. ``stated`` is False where nobody has decided anything.
    """

    rule: Rule
    keys: tuple[Key, ...]
    where: str
    threshold: int = 1
    signed_as: str | None = None
    stated: bool = True


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules of one policy file, by pattern, and what holds for everything else."""

    default: Decision
    rules: Mapping[str, Decision]
    keys: Mapping[str, Key]

    def decide(self, name: str) -> Decision:
        """What holds for an image, by its registry and repository (`Reference.name`), or its URL without fragment.

        What a URL asks for and what it escapes may mean nothing to its server: a rule for the plain URL that is more
        specific, and no less strict, is not got round by them.
        """
        found = self._pattern(name)
        decision = self.rules[found] if found is not None else self.default
        if name.startswith("https://"):
            path = re.sub(r"[/\\]+", "/", unquote(name.removeprefix("https://").partition("?")[0]))
            plain = self._pattern(f"https://{path}")
            if plain is not None and (found is None or _literals(plain) > _literals(found)):
                other = self.rules[plain]
                if _STRICTNESS[other.rule] >= _STRICTNESS[decision.rule]:
                    return other
        return decision

    def _pattern(self, name: str) -> str | None:
        # TLS's own port may be written or not; a rule is about both.
        host, slash, rest = name.partition("/")
        host = host.removesuffix(":443")
        names = (name,) if ":" in host else (f"{host}{slash}{rest}", f"{host}:443{slash}{rest}")
        found = [name for name in names if name in self.rules]
        if not found:
            found = [pattern for pattern in self.rules if any(matches(pattern, name) for name in names)]
        if not found:
            return None
        return max(found, key=lambda p: (_literals(p), _STRICTNESS[self.rules[p].rule]))


def load_policy(path: Path | None, *, signed_only: bool = False) -> Policy:
    """The policy in a file; None is no policy at all. ``signed_only`` turns a default of ``allow`` into ``require``.

    Raises:
        InvalidPolicy: the file, or a key that it names, cannot be read or understood; or everything must be signed and
            there is no key.
    """
    if path is None:
        if signed_only:
            raise InvalidPolicy(
                "modules.signed_only is on and there are no keys: name a policy with keys in modules.signature_policy"
            )
        return Policy(Decision(Rule.ALLOW, (), _NO_POLICY, stated=False), {}, {})
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_POLICY_BYTES + 1)
    except OSError as error:
        raise InvalidPolicy(f"signature policy {path}: {error.strerror or error}") from None
    return parse_policy(raw, path, signed_only=signed_only)


def parse_policy(raw: bytes, path: Path, *, signed_only: bool = False) -> Policy:
    """The policy that ``raw`` says; ``path`` is where it is from, for errors and for the keys' files.

    Raises:
        InvalidPolicy: as `load_policy`.
    """
    if len(raw) > _MAX_POLICY_BYTES:
        raise InvalidPolicy(f"signature policy {path}: it has more than {_MAX_POLICY_BYTES} bytes")
    try:
        return _policy(_document(raw), path.parent, signed_only=signed_only)
    except InvalidPolicy as error:
        raise InvalidPolicy(f"signature policy {path}: {error}") from None


def matches(pattern: str, name: str) -> bool:
    """Whether a name fits a pattern with ``*`` and ``?``; nothing else has a meaning, brackets of IPv6 least of all.

    In time proportional to the product of their lengths: no pattern is slow.
    """
    at, star, mark, here = 0, -1, 0, 0
    while here < len(name):
        if at < len(pattern) and pattern[at] == "*":
            star, mark, at = at, here, at + 1
        elif at < len(pattern) and pattern[at] in ("?", name[here]):
            at, here = at + 1, here + 1
        elif star >= 0:  # let the last star take one character more
            mark += 1
            at, here = star + 1, mark
        else:
            return False
    return not pattern[at:].strip("*")


def _literals(pattern: str) -> int:
    return sum(c not in "*?" for c in pattern)


def _document(raw: bytes) -> dict[str, Any]:
    try:
        return tomllib.loads(raw.decode())
    except UnicodeDecodeError as error:
        raise InvalidPolicy(f"it is not UTF-8 (byte {error.start})") from None
    except tomllib.TOMLDecodeError as error:
        raise InvalidPolicy(f"not TOML: {error}") from None
    except (ValueError, RecursionError):  # numbers of thousands of digits, endless nesting
        raise InvalidPolicy("not TOML that anybody would write") from None


def _policy(document: dict[str, Any], directory: Path, *, signed_only: bool) -> Policy:
    _known(document, {"default", "keys", "repositories"}, "the policy")
    keys = {name: _key(name, table, directory) for name, table in _tables(document, "keys").items()}
    for name in keys:
        if not _KEY_NAME.fullmatch(name):
            raise InvalidPolicy(f"[keys.{name!r}]: a key's name has up to 64 letters, digits and . _ @ + -")
    stated = "default" in document
    rule = _rule(document.get("default", "allow"), "default")
    if rule is Rule.ALLOW and signed_only:
        rule, stated = Rule.REQUIRE, True
    if rule is Rule.REQUIRE and not keys:
        why = "modules.signed_only is on" if signed_only else 'default = "require"'
        raise InvalidPolicy(f'{why} and there is no key: add [keys.NAME] with file = "..."')
    default = Decision(rule, _all(keys, rule), "the policy's default" if stated else _UNSAID, stated=stated)
    tables = _tables(document, "repositories")
    if len(tables) > _MAX_RULES:
        raise InvalidPolicy(f"more than {_MAX_RULES} repositories: use patterns")
    return Policy(default, {pattern: _decision(pattern, table, keys) for pattern, table in tables.items()}, keys)


def _all(keys: Mapping[str, Key], rule: Rule) -> tuple[Key, ...]:
    return tuple(keys.values()) if rule is Rule.REQUIRE else ()


def _decision(pattern: str, table: dict[str, Any], keys: Mapping[str, Key]) -> Decision:
    where = f'[repositories."{pattern}"]'
    _check_pattern(pattern, where)
    _known(table, {"rule", "keys", "threshold", "signed_as"}, where)
    if "rule" not in table:
        raise InvalidPolicy(f'{where}: rule is missing: "allow", "deny" or "require"')
    rule = _rule(table["rule"], f"{where} rule")
    if rule is not Rule.REQUIRE:
        if more := sorted(set(table) - {"rule"}):
            raise InvalidPolicy(f'{where}: {more[0]} has a meaning only with rule = "require"')
        return Decision(rule, (), where)
    chosen = _chosen(table["keys"], keys, where) if "keys" in table else tuple(keys.values())
    if not chosen:
        raise InvalidPolicy(f"{where}: there is no key that could have signed: name one in keys")
    threshold = table.get("threshold", 1)
    if type(threshold) is not int or not 1 <= threshold <= len(chosen):
        raise InvalidPolicy(f"{where} threshold: a number from 1 to {len(chosen)}, the number of its keys")
    signed_as = table.get("signed_as")
    if signed_as is not None and signed_as != SAME_NAME:
        if not isinstance(signed_as, str):
            raise InvalidPolicy(f'{where} signed_as: "same", or a pattern for a name')
        _check_pattern(signed_as, f"{where} signed_as")
    return Decision(rule, chosen, where, threshold, signed_as)


def _chosen(names: object, keys: Mapping[str, Key], where: str) -> tuple[Key, ...]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InvalidPolicy(f"{where} keys: a list of names")
    for name in names:
        if name not in keys:
            known = ", ".join(list(keys)[:8]) or "none"
            raise InvalidPolicy(f"{where} keys: there is no [keys.{name[:64]}] (there is: {known})")
    return tuple(keys[name] for name in dict.fromkeys(names))


def _key(name: str, table: dict[str, Any], directory: Path) -> Key:
    where = f"[keys.{name}]"
    _known(table, {"file", "not_after"}, where)
    file = table.get("file")
    if not isinstance(file, str) or not file or "\0" in file:
        raise InvalidPolicy(f"{where} file: the path of a public key or certificate, as PEM")
    not_after = table.get("not_after")
    if not_after is not None:
        if not isinstance(not_after, datetime) or not_after.tzinfo is None:
            raise InvalidPolicy(f"{where} not_after: a date with time and zone, such as 2027-01-01T00:00:00Z")
        try:
            not_after = not_after.astimezone(UTC)
        except OverflowError:
            raise InvalidPolicy(f"{where} not_after: no date in this calendar") from None
    path = directory / file
    return Key(name, read_key(path, where), path, not_after)


def read_key(path: Path, where: str) -> bytes:
    """The text of a public key's or certificate's file; whether it is one is only seen when it is used.

    Raises:
        InvalidPolicy: it cannot be read, or is no PEM of that kind.
    """
    try:
        with path.open("rb") as opened:
            pem = opened.read(_MAX_KEY_BYTES + 1)
    except (OSError, ValueError) as error:
        raise InvalidPolicy(f"{where}: {path}: {getattr(error, 'strerror', None) or error}") from None
    if len(pem) > _MAX_KEY_BYTES or not _PEM.search(pem):
        raise InvalidPolicy(f"{where}: {path} is no public key and no certificate (PEM): cosign public-key writes one")
    return pem


def _rule(value: object, where: str) -> Rule:
    try:
        return Rule(value) if isinstance(value, str) else Rule("")
    except ValueError:
        raise InvalidPolicy(f'{where}: "allow", "deny" or "require", not {str(value)[:40]!r}') from None


def _tables(document: dict[str, Any], key: str) -> dict[str, dict[str, Any]]:
    found = document.get(key, {})
    if not isinstance(found, dict) or not all(isinstance(table, dict) for table in found.values()):
        raise InvalidPolicy(f'{key}: tables, written as [{key}."NAME"]')
    return found


def _known(table: Mapping[str, Any], keys: set[str], where: str) -> None:
    for key in table:
        if key not in keys:
            raise InvalidPolicy(f"{where}: unknown key {key[:60]!r} (known: {', '.join(sorted(keys))})")


def _check_pattern(pattern: str, where: str) -> None:
    """Refuse what no name can ever fit: a rule that is never used protects nobody."""
    if pattern.startswith("https://") or not pattern.strip("*"):
        return
    if pattern.lower() != pattern:
        raise InvalidPolicy(f"{where}: names are lower case")
    if "/" not in pattern and "*" not in pattern:
        raise InvalidPolicy(f"{where}: write registry/repository, such as ghcr.io/org/* or docker.io/library/nginx")
    if "://" in pattern or "@" in pattern or ":" in pattern.rpartition("/")[2]:
        raise InvalidPolicy(f"{where}: without scheme, tag and digest: registry/repository, or https://host/path")
    if "*" not in pattern and "?" not in pattern:
        try:
            name = Reference.parse(pattern).name
        except InvalidReference as error:
            raise InvalidPolicy(f"{where}: {error}") from None
        if name != pattern:
            raise InvalidPolicy(f"{where}: this repository's whole name is {name}: write that")
