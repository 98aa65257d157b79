import anyio
import durable
import news
import pytest

from shoal import Application, State
from shoal.stores import Store
from shoal.testing import RecordingHook, crash_everywhere, run_virtual

URLS = ["news/tide", "news/busy"]


@pytest.fixture(autouse=True)
def forget_downloads() -> None:
    news.downloads.clear()


def test_a_slow_model_loses() -> None:
    async def main() -> float:
        hook = RecordingHook()
        await Application(durable.digest, hooks=[hook]).run({"urls": URLS})
        hook.assert_paired()  # whatever started has ended
        return anyio.current_time()

    assert run_virtual(main) < 1  # seconds of a virtual clock; the large model takes 30


def test_no_crash_loses_a_summary() -> None:
    async def scenario(store: Store) -> State:
        app = Application(durable.digest, store=store)
        return (await app.run({"urls": URLS}, id="monday")).state

    places = crash_everywhere(scenario)  # before and after each save
    assert places > 10
