"""A handler that does nothing: what is left is the server."""


def handle(rows: list[dict[str, object]] | None, context: object) -> list[bytes] | None:
    """Two bytes for each row, which TorchServe passes on as they are."""
    return None if rows is None else [b"{}"] * len(rows)
