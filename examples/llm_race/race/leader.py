"""Determines whose answer streams, from the events of a race."""

from examples.llm_race.client.exchange import Asked, Chunk
from shoal import Done
from shoal.events import AttemptEnded, ChildEnded, Event, Item


class Leader:
    """Follows the leader of a race, and its text.

    No event names the leader, so it is derived: the first contestant to send text leads until it
    fails. Text that others send before they are cancelled is kept, in case one of them takes the
    lead.
    """

    def __init__(self) -> None:
        self.said: dict[str, str] = {}  # texts by the runs of the contestants
        self.run: str | None = None
        self.taken = 0  # characters of the leader's text that were taken

    def on_event(self, event: Event) -> str | None:
        """Record an event. If text that was taken counts no more, return the reason."""
        match event:
            case Item(item=Asked()):  # maybe not for the first time
                return self._forget(event.run_id, "it is asked again")
            case Item(item=Chunk(text=text)) if text:
                self.said[event.run_id] = self.said.get(event.run_id, "") + text
                if self.run is None and self.said[event.run_id].strip():  # blanks decide nothing
                    self.run = event.run_id
            case AttemptEnded(error=error) if error is not None:
                return self._forget(event.run_id, str(error))
            case ChildEnded(outcome=outcome) if not isinstance(outcome, Done):
                return self._forget(outcome.run_id, "it was cancelled")
            case _:
                pass
        return None

    def take(self) -> str:
        """Return the leader's text that was not taken yet."""
        if self.run is None:
            return ""
        text = self.said[self.run][self.taken :]
        self.taken += len(text)
        return text

    def _forget(self, run: str, why: str) -> str | None:
        self.said.pop(run, None)
        if run != self.run:
            return None
        had_taken = self.taken > 0
        self.run = next((other for other, text in self.said.items() if text.strip()), None)
        self.taken = 0
        return why if had_taken else None
