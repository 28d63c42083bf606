"""When a worker is started again, and when it is taken to have stalled. Pure: times are given."""

from collections import deque

FIRST_DELAY_S, MAX_DELAY_S = 1.0, 60.0
MEMORY_S = 600.0  # deaths that lie further back count no more
MAX_FAILED_STARTS = 3  # a worker that dies while loading is started this often in a row

STALL_FACTOR = 10.0


class RestartPolicy:
    """Delays between restarts: 1 s, doubling to a minute while workers keep dying."""

    def __init__(self) -> None:
        self._deaths: deque[float] = deque()
        self._num_failed_starts = 0

    def note_ready(self) -> None:
        """Note that a worker has loaded."""
        self._num_failed_starts = 0

    def note_death(self, now: float, *, was_ready: bool) -> float | None:
        """Return the seconds until the next start, or None if there should be none."""
        if not was_ready:
            self._num_failed_starts += 1
            if self._num_failed_starts >= MAX_FAILED_STARTS:
                return None
        self._deaths.append(now)
        while now - self._deaths[0] > MEMORY_S:
            self._deaths.popleft()
        return float(min(FIRST_DELAY_S * 2 ** (len(self._deaths) - 1), MAX_DELAY_S))

    @property
    def num_deaths(self) -> int:
        """How often the worker died within the last ten minutes."""
        return len(self._deaths)


class StallWatch:
    """Whether a worker with jobs has been silent for too long.

    Its limit is learned: ten times the longest silence between two steps so far, and at least
    `floor_s`. Before its first step it may take ten times the floor, since kernels are compiled.
    """

    def __init__(self, floor_s: float) -> None:
        self._floor_s = floor_s
        self._longest_s = 0.0
        self._last_at = 0.0
        self._has_stepped = False

    @property
    def limit_s(self) -> float:
        if not self._has_stepped:
            return STALL_FACTOR * self._floor_s
        return max(self._floor_s, STALL_FACTOR * self._longest_s)

    def restart(self, now: float) -> None:
        """Begin to count: a new worker is ready, or an idle one gets a job."""
        self._last_at = now

    def forget(self) -> None:
        """Forget what was learned of a worker that is dead."""
        self._longest_s, self._has_stepped = 0.0, False

    def note_event(self, now: float, *, is_step: bool) -> None:
        """Note a message of the worker."""
        if is_step:
            if self._has_stepped:
                self._longest_s = max(self._longest_s, now - self._last_at)
            self._has_stepped = True
        self._last_at = now

    def is_stalled(self, now: float) -> bool:
        """Return whether a worker with jobs has been silent for too long."""
        return now - self._last_at > self.limit_s
