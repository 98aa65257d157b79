from dbos import DBOS, SetWorkflowID
from world import call


@DBOS.step()
async def work(name: str, step: int) -> str:
    return await call(f"{name}, step {step}")


@DBOS.workflow()
async def job(name: str) -> list[str]:
    return [await work(name, step) for step in range(5)]


async def main() -> dict[str, list[str]]:
    DBOS(config={"name": "jobs", "system_database_url": "sqlite:///runs.db"})
    DBOS.launch()
    try:
        jobs = {}
        for name in ("job 1", "job 2", "job 3"):
            with SetWorkflowID(name):
                jobs[name] = await DBOS.start_workflow_async(job, name)
        return {name: await one.get_result() for name, one in jobs.items()}
    finally:
        DBOS.destroy()
