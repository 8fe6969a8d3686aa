"""Faults on demand, and the log of calls."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Call:
    """One call as it was answered; `status` is None where no answer was given."""

    origin: str
    method: str
    path: str
    query: dict
    headers: dict
    status: int | None
    known: bool = True

    def __str__(self):
        return f"{self.origin} {self.method} {self.path} -> {self.status}"


@dataclass
class Fault:
    """What goes wrong in calls whose path matches.

    Args:
        path: Regular expression that is searched in the path.
        method: HTTP method, or None for all.
        status: Answer with this status instead of the right answer.
        drop: Close the connection without an answer.
        gone: Stop both servers without an answer; `HubServer.start` brings them back.
        delay: Seconds to wait before the answer.
        after: Number of matching calls that are let through first.
        times: Number of calls that fail.
    """

    path: str
    method: str | None = None
    status: int | None = None
    drop: bool = False
    gone: bool = False
    delay: float = 0.0
    after: int = 0
    times: int = 1

    def strikes(self, method, path):
        """Whether this call fails; counts it."""
        if self.times == 0 or self.method not in (None, method) or not re.search(self.path, path):
            return False
        if self.after > 0:
            self.after -= 1
            return False
        self.times -= 1
        return True
