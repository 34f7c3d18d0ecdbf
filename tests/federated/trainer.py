"""The client of `tests/modules/trainer.c`, run here; data to train on; and the loss, computed independently."""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import wasmtime

from tests.support.modules import module

Rows = Sequence[Sequence[float]]


class ClientError(Exception):
    """The client ended with an exit status; holds what it said."""


def run_client(directory: Path, env: Mapping[str, str]) -> str:
    """Return what the client prints in this environment."""
    out, err = directory / "out", directory / "err"
    engine = wasmtime.Engine()
    store = wasmtime.Store(engine)
    wasi = wasmtime.WasiConfig()
    wasi.env = list(env.items())
    wasi.stdout_file, wasi.stderr_file = str(out), str(err)
    store.set_wasi(wasi)
    linker = wasmtime.Linker(engine)
    linker.define_wasi()
    instance = linker.instantiate(store, wasmtime.Module(engine, module("trainer")))
    start = instance.exports(store)["_start"]
    assert isinstance(start, wasmtime.Func)
    try:
        start(store)
    except wasmtime.ExitTrap as error:
        raise ClientError(err.read_text().strip() or f"exit {error.code}") from None
    return out.read_text()


def samples(seed: int, count: int, weights: Sequence[float] = (2.0, -3.0), bias: float = 1.0) -> list[list[float]]:
    """Rows of x..., y on a plane, with a little noise."""
    chance = random.Random(seed)
    rows = []
    for _ in range(count):
        x = [round(chance.uniform(-1, 1), 3) for _ in weights]
        y = sum(w * each for w, each in zip(weights, x, strict=True)) + bias + chance.gauss(0, 0.01)
        rows.append([*x, round(y, 4)])
    return rows


def mean_squared_error(parameters: Sequence[float], rows: Rows) -> float:
    *weights, bias = parameters
    errors = [sum(w * x for w, x in zip(weights, row[:-1], strict=True)) + bias - row[-1] for row in rows]
    return sum(error * error for error in errors) / len(errors)


def descend(parameters: Sequence[float], rows: Rows, rate: float, epochs: int) -> list[float]:
    """Gradient descent on the mean squared error."""
    now = list(parameters)
    for _ in range(epochs):
        slope = [0.0] * len(now)
        for *x, y in rows:
            error = sum(w * each for w, each in zip(now[:-1], x, strict=True)) + now[-1] - y
            for at, each in enumerate([*x, 1.0]):
                slope[at] += 2 * error * each / len(rows)
        now = [value - rate * change for value, change in zip(now, slope, strict=True)]
    return now


def environment(rows: Rows, proplet_id: str = "device-1", **hyperparams: object) -> dict[str, str]:
    """What a round gives a client, without a global update."""
    given = {"learning_rate": 0.2, "epochs": 3, "data": {"other": [[0, 0]], proplet_id: rows}, **hyperparams}
    return {"ROUND_ID": "round-1", "FL_JOB_ID": "e", "PROPLET_ID": proplet_id, "HYPERPARAMS": json.dumps(given)}
