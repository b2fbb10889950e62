"""Asks the gateway whether a worker is ready: 0 if it answers 200, else 1. HEALTHCHECK runs it without a shell."""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request

PORT = os.environ.get("AIP_HTTP_PORT") or os.environ.get("PORT") or "8080"  # as serving/container.py has it
DEFAULT = f"http://127.0.0.1:{PORT}/health"


def main() -> int:
    """`python docker/health.py [URL]`."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(f"usage: health.py [URL]    0 if it answers 200 (default: {DEFAULT})")
        return 0
    url = sys.argv[1] if len(sys.argv) > 1 else DEFAULT
    # No proxy: an HTTP_PROXY of the host may have been handed to the container.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=4) as reply:
            return 0 if reply.status == 200 else 1
    except (OSError, urllib.error.URLError) as err:
        print(f"{url}: {err}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
