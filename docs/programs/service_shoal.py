from typing import Any

from world import call

from shoal import END, Application, Graph, RunHandle, Runtime, SQLiteStore, action, when


@action(reads=["job", "steps"], writes=["steps"])
async def work(job: str, steps: list[str]) -> list[str]:
    return [*steps, await call(f"{job}, step {len(steps)}")]


again = when(lambda steps: len(steps) < 5)
jobs = Graph((work, work, again), (work, END), entry=work, name="jobs")
app = Application(jobs, store=SQLiteStore("runs.db"))


async def main() -> dict[str, Any]:
    async with Runtime(apps=[app]) as runtime:
        handles: dict[str, RunHandle[Any]] = {}
        for name in ("job 1", "job 2", "job 3"):
            handles[name] = await runtime.start(app, {"job": name, "steps": []}, id=name)
        return {
            name: (await job.result()).state.to_plain()["steps"] for name, job in handles.items()
        }
