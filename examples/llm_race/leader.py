"""Whose answer it is that streams, worked out from what happens in a race."""

from examples.llm_race.exchange import Asked, Chunk
from shoal import Done
from shoal.events import AttemptEnded, ChildEnded, Event, Item


class Leader:
    """Follows who leads, and what that one says.

    Nobody is told who leads, so it is worked out: the first to say something leads until it fails.
    What others say in the moment before they are cancelled is kept, in case that one of them takes
    the lead.
    """

    def __init__(self) -> None:
        self.said: dict[str, str] = {}  # by the runs of the contestants
        self.run: str | None = None
        self.taken = 0  # characters of what the leader has said

    def hear(self, event: Event) -> str | None:
        """Hear what happens. If what was taken counts no more by that, say why."""
        match event:
            case Item(item=Asked()):  # again, maybe
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
        """What the leader has said that was not taken yet."""
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
