"""What the stories of faults share: how managers are started, which of them wait for less, and what must hold after."""

from typing import Final, Protocol

from tests.manager.device import Device
from tests.support.kubernetes_manager import ManagerProcess

#: Settings with which a manager waits for less, so that a test does, too.
HASTY: Final = {"PROPLET_KUBERNETES_API_SERVER_TIMEOUT": "5s", "PROPLET_KUBERNETES_REFUSED_HOLD": "6s"}

#: Arguments for one of several managers, with a Lease that is soon over.
LEASE: Final = (
    "--leader-elect",
    "--leader-elect-lease-duration=8s",
    "--leader-elect-renew-deadline=5s",
    "--leader-elect-retry-period=500ms",
)


class Launch(Protocol):
    """Starts a manager with more arguments and variables; it ends with the test."""

    def __call__(self, name: str = "manager", *more: str, hasty: bool = False) -> ManagerProcess: ...


def one_run_each(device: Device) -> bool:
    """Whether every attempt ran once, and no task had two attempts."""
    tasks = [task for task, _ in device.runs]
    return set(device.runs.values()) <= {1} and len(tasks) == len(set(tasks))
