"""The client really trains: held to the same descent in Python, round by round, in both formats."""

import base64
import json
from pathlib import Path

import pytest

from proplet.manager.updates import Envelope, combine, read_envelope
from tests.federated.trainer import ClientError, descend, environment, mean_squared_error, run_client, samples


def test_the_client_descends_as_the_mathematics_says(tmp_path: Path) -> None:
    rows = samples(1, 12)
    envelope = read_envelope(run_client(tmp_path, environment(rows)))
    expected = descend([0, 0, 0], rows, 0.2, 3)
    assert envelope.parameters().values == pytest.approx(expected, rel=1e-12)
    assert (envelope.num_samples, envelope.round_id, envelope.job_id, envelope.proplet_id) == (
        12,
        "round-1",
        "e",
        "device-1",
    )
    assert envelope.metrics["loss"] == pytest.approx(mean_squared_error([0, 0, 0], rows), rel=1e-12)
    assert envelope.metrics["trained_loss"] == pytest.approx(mean_squared_error(expected, rows), rel=1e-12)


@pytest.mark.parametrize("form", ["json-f64", "f32-delta"])
def test_three_clients_learn_the_model_together(tmp_path: Path, form: str) -> None:
    data = {f"device-{n}": samples(n, 8 * n) for n in (1, 2, 3)}
    everything = [row for rows in data.values() for row in rows]
    before: Envelope | None = None
    losses = []
    for number in range(1, 6):
        extra = {}
        if before is not None:
            extra = {
                "FL_GLOBAL_UPDATE_B64": base64.b64encode(before.update).decode(),
                "FL_GLOBAL_UPDATE_FORMAT": before.format,
            }
        updates = [
            read_envelope(run_client(tmp_path, environment(rows, name, epochs=8, format=form) | extra))
            for name, rows in data.items()
        ]
        before = combine(updates, before, round_id=f"round-{number}", job_id="e")
        assert before.format == form
        losses.append(mean_squared_error(before.parameters().values, everything))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] / 100
    assert before is not None
    assert before.parameters().values == pytest.approx((2.0, -3.0, 1.0), abs=0.1)


def test_a_model_of_many_magnitudes_is_read_and_written_exactly_enough(tmp_path: Path) -> None:
    given = [1.5e-9, -123456.789, 1e15, 0.0, 2.25]
    extra = {"FL_GLOBAL_UPDATE_B64": base64.b64encode(json.dumps(given).encode()).decode()}
    envelope = read_envelope(run_client(tmp_path, environment([[0, 0, 0, 0, 2.25]], epochs=0) | extra))
    assert envelope.parameters().values == pytest.approx(given, rel=1e-12)


@pytest.mark.parametrize(
    ("env", "text"),
    [
        ({}, "ROUND_ID is not set"),
        ({"ROUND_ID": "1"}, "no data"),
        ({"ROUND_ID": "1", "DATASET_DATA": "[]"}, "no data to train on"),
        ({"ROUND_ID": "1", "DATASET_DATA": "[[1,2],[1]]"}, "each row"),
        ({"ROUND_ID": "1", "DATASET_DATA": "[[1,x]]"}, "a number is missing"),
        ({"ROUND_ID": "1", "DATASET_DATA": "[[1e200,1e200]]"}, "diverged"),
        ({"ROUND_ID": "1", "DATASET_DATA": "[[1,2]]", "FL_GLOBAL_UPDATE_B64": "WzFd"}, "another number of parameters"),
    ],
)
def test_a_client_that_cannot_train_says_why(tmp_path: Path, env: dict[str, str], text: str) -> None:
    with pytest.raises(ClientError, match=text):
        run_client(tmp_path, env)
