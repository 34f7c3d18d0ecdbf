"""Between two turns of a cluster's manager: what an HTTP API gets to hear, and what the Lease is called."""

import pytest

from proplet.manager.cluster import lease_terms
from proplet.manager.controller import Controller
from proplet.manager.manifest import GROUPS
from proplet.manager.ports import NotFoundError, StoreUnavailableError
from proplet.manager.steering import Steering
from proplet.manager.store_memory import MemoryStore


@pytest.mark.anyio
async def test_commands_go_to_the_controller_that_is_at_work_and_are_refused_when_none_is() -> None:
    now: list[Controller] = []
    steering = Steering(lambda: now[-1] if now else None)
    with pytest.raises(StoreUnavailableError, match="not at work now"):
        await steering.start("uid")
    with pytest.raises(StoreUnavailableError, match="not at work now"):
        await steering.invoke("uid", (), {}, 1.0)
    assert steering.liveness("p").reason == "this manager is not at work"
    assert not any((steering.proplet_metrics("p"), steering.task_metrics("t"), steering.task_logs("t")))
    now.append(Controller(MemoryStore()))
    with pytest.raises(NotFoundError):
        await steering.stop("uid")
    with pytest.raises(NotFoundError):
        await steering.invoke("uid", (), {}, 1.0)
    assert steering.liveness("p").reason == "not known"


def test_the_lease_is_the_reference_operators_where_nothing_else_is_said() -> None:
    assert lease_terms(GROUPS[0], None, None, None).name == "fa27fa49.propeller.abstractmachines.fr"
    assert lease_terms("propeller.propeller.absmach.eu", None, None, None).name == "fa27fa49.propeller.absmach.eu"
    said = lease_terms(GROUPS[0], "mine", "here", "me", ("edge",))
    assert (said.name, said.namespace, said.identity) == ("mine", "here", "me")
    assert lease_terms(GROUPS[0], None, None, None, ("edge",)).namespace == "edge"
