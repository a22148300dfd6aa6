"""A display of progress whose clock goes when it is told to, and which remembers what was opened."""

from hf_mabprune.progress import Display, Work


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Watched(Display):
    """A display that is looked at whenever its clock has gone on.

    Attributes:
        opened: Every work that was opened, in order.
    """

    def __init__(self) -> None:
        self.time = Clock()
        super().__init__(self.time, threaded=False)
        self.opened: list[Work] = []

    def begin(self, name: str, total: int | None = None, unit: str = "steps", done: int = 0) -> Work:
        work = super().begin(name, total, unit, done)
        self.opened.append(work)
        return work

    def wait(self, seconds: float) -> None:
        """Lets so many seconds pass, one by one."""
        for _ in range(int(seconds)):
            self.time.now += 1
            self.tick()

    def names(self) -> list[str]:
        """Names of all works that were opened."""
        return [work.name for work in self.opened]

    def last(self, name: str) -> Work:
        """The work of that name that was opened last."""
        return next(work for work in reversed(self.opened) if work.name == name)
