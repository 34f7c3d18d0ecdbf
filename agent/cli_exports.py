"""What a core module exports, read from its bytes without an engine: enough to catch a mistyped ``--invoke``.

Source: WebAssembly core specification, binary format, modules (sections, export section).
"""

_HEADER = b"\0asm\x01\0\0\0"
_EXPORTS, _FUNCTION = 7, 0


def exported_functions(module: bytes) -> list[str] | None:
    """Return the names of the exported functions; None where the bytes are no core module, or are damaged."""
    if not module.startswith(_HEADER):
        return None
    position = len(_HEADER)
    try:
        while position < len(module):
            section = module[position]
            length, position = _number(module, position + 1)
            if section == _EXPORTS:
                return _names(module, position, position + length)
            position += length
    except (IndexError, UnicodeDecodeError):
        return None
    return []


def _names(module: bytes, position: int, end: int) -> list[str]:
    count, position = _number(module, position)
    found = []
    for _ in range(count):
        length, position = _number(module, position)
        name = module[position : position + length].decode("utf-8")
        kind = module[position + length]
        _, position = _number(module, position + length + 1)
        if position > end:
            raise IndexError
        if kind == _FUNCTION:
            found.append(name)
    return found


def _number(module: bytes, position: int) -> tuple[int, int]:
    """Return an unsigned LEB128 number of at most 32 bits, and where it ends."""
    value = 0
    for shift in range(0, 35, 7):
        byte = module[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise IndexError
