"""The command line: `python -m client COMMAND --help`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, and return its exit status."""
    try:
        # Here, so that Ctrl-C is quiet while requests is imported too.
        from client.arguments import parse  # noqa: PLC0415
        from client.errors import ClientError  # noqa: PLC0415

        args = parse(sys.argv[1:] if argv is None else argv)
        try:
            args.run(args)
            sys.stdout.flush()
        except BrokenPipeError:  # the reader has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except ValueError as error:  # an argument that no server had to see
            return fail(error, 2)
        except (ClientError, OSError) as error:
            return fail(error, 1)
        return 0
    except KeyboardInterrupt:
        return 130


def fail(error: Exception, status: int) -> int:
    """Say what went wrong, on one line."""
    print("error:", " ".join(str(error).split()), file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
