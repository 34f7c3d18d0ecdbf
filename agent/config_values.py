"""Durations, sizes and truths as people write them; also what the command line's flags take."""

import re

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kKMGT])(i?)[Bb]?|[Bb])?")
_EXPONENTS = {"k": 1, "K": 1, "M": 2, "G": 3, "T": 4}


def parse_duration(text: str) -> float:
    """Return the seconds of "10s", "1h30m", "250ms" or "2.5". Raises ValueError."""
    text = text.strip()
    if re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII):
        return float(text)
    if not text or _DURATION.sub("", text).strip():
        raise ValueError(f'"{text}" is no duration: write it like "10s", "5m", "1h30m" or "7d"')
    return sum(float(number) * _SECONDS[unit] for number, unit in _DURATION.findall(text))


def parse_size(text: str) -> int:
    """Return the bytes of "64Mi", "10M" (decimal), "1.5Gi" or "512". Raises ValueError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f'"{text}" is no size: write it like "64Mi", "1.5Gi" or "500k"')
    number, prefix, binary = match.groups()
    factor: int = (1024 if binary else 1000) ** _EXPONENTS.get(prefix or "", 0)
    return round(float(number) * factor)


def parse_bool(text: str) -> bool:
    """Return the truth of true/false, 1/0, yes/no, on/off. Raises ValueError."""
    word = text.strip().lower()
    if word in ("true", "1", "yes", "on"):
        return True
    if word in ("false", "0", "no", "off"):
        return False
    raise ValueError(f'"{text}" is neither true nor false')
