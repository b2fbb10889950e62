"""What stops a command: the user's to mend, told in lines."""

from __future__ import annotations


class Refused(Exception):
    """The request cannot be carried out; every reason at once, a line each."""

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class Interrupted(BaseException):
    """A signal asked the build to stop. Not an Exception, so that nothing but clean-up handles it."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(number)
