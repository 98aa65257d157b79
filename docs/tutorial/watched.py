from models import digest

from shoal import Application, Hook
from shoal.events import AttemptEnded, RunEnded


class Log(Hook):
    observer = True

    def on_attempt_ended(self, event: AttemptEnded) -> None:
        if event.error is not None and event.next_in is not None:
            print(f"{event.path.key} {event.step}: {event.error}; trying again")

    def on_run_ended(self, event: RunEnded) -> None:
        if event.depth == 0:
            print("the run", event.status)


app = Application(digest, name="digest", hooks=[Log()])
result = app.run_sync({"urls": ["news/busy", "news/lost"]})
ledger = result.outcomes("summaries")
print(ledger)
for outcome in ledger:
    print(outcome.key, type(outcome).__name__)
