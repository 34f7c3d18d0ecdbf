"""Compiled modules that cannot be used as they are: damaged, or without the fuel counting that a job needs.

Place in the flow: a worker says so, `runtime` asks here for a new one and gives the job to a worker again.
"""

from proplet.agent.ports import Artefact, Job, ModuleError, Modules, ModuleWanted, Outcome, StorageError
from proplet.agent.wire import Reason


async def made_again(modules: Modules | None, job: Job) -> Artefact | Outcome:
    """Return the job's module compiled anew from the bytes in the store, or how the job ends without it."""
    artefact = job.artefact
    if modules is None:
        return Outcome(Reason.INTERNAL, error="the compiled module cannot be used as it is: start the task again")
    metered = artefact.metered or job.limits.fuel is not None
    try:
        return await modules.prepare(
            ModuleWanted(module_digest=artefact.module_digest, metered=metered), lambda _stage: None
        )
    except ModuleError as error:
        return Outcome(error.reason, error=str(error))
    except StorageError as error:
        return Outcome(Reason.STORAGE, error=str(error))
