"""Why the server is not started, or did not go on."""


class CannotServe(Exception):
    """One sentence says why."""
