"""Who may read a running manager's metrics. No cluster is there: that is no reason not to be asked."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.kubernetes_manager import ManagerProcess, eventually
from tests.support.ports import free_port

NOWHERE = ["--domain-id=d", "--channel-id=c", "--client-id=m", "--client-key=k"]


@contextmanager
def running(directory: Path, *more: str) -> Iterator[ManagerProcess]:
    directory.mkdir()
    config = directory / "kubeconfig"
    config.write_text(
        "{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}],"
        f" clusters: [{{name: c, cluster: {{server: 'http://127.0.0.1:{free_port()}'}}}}],"
        " users: [{name: u, user: {}}]}"
    )
    address = f"--mqtt-address=tcp://127.0.0.1:{free_port()}"
    with ManagerProcess(directory / "m", [address, *NOWHERE, f"--kubeconfig={config}", *more]) as manager:
        eventually(lambda: manager.ask("/healthz")[0] == 200, manager.log)
        yield manager


def test_a_token_is_asked_for_where_there_is_one_and_the_probes_stay_open(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("a token of some length")
    with running(tmp_path / "with", f"--metrics-token-file={token}") as manager:
        status, text = manager.ask("/metrics")
        assert status == 401
        assert "--metrics-token-file" in text
        assert manager.ask("/readyz")[0] == 503  # answered


def test_the_references_arguments_for_metrics_are_taken_and_this_machine_is_answered(tmp_path: Path) -> None:
    for number, argument in enumerate(("--metrics-secure", "--metrics-secure=false", "--metrics-secure=true")):
        with running(tmp_path / str(number), argument) as manager:
            assert manager.metric("proplet_leader") == 1
