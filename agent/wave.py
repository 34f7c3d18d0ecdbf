"""WAVE, the text of component values: arguments read, results written, as the reference does.

Source: bytecodealliance/wasm-tools, crates/wasm-wave; protocol of absmach/propeller, workers of its newer era. The
values are described in `wave_values`. Knows nothing of wasmtime.
"""

from collections.abc import Sequence

from proplet.agent.wave_reading import parse
from proplet.agent.wave_values import Case, Err, Ok, Some, Value, WaveError, shorten
from proplet.agent.wave_writing import show
from proplet.agent.wit import Function

__all__ = ["Case", "Err", "Ok", "Some", "Value", "WaveError", "parse", "parse_all", "show"]


def parse_all(name: str, texts: Sequence[str], function: Function) -> list[Value]:
    """Return `texts` as the arguments of `function`, which is exported as `name`.

    Raises:
        WaveError: their number or one of them does not fit.
    """
    if len(texts) != len(function.parameters):
        raise WaveError(
            f"Argument count mismatch for '{name}': expected {len(function.parameters)} but got {len(texts)}"
        )
    values = []
    for text, (parameter, kind) in zip(texts, function.parameters, strict=True):
        try:
            values.append(parse(text, kind))
        except WaveError as error:
            raise WaveError(
                f"Failed to parse WAVE argument '{shorten(text)}' for export '{name}': {error} (parameter {parameter})"
            ) from error
    return values
