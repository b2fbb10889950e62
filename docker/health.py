"""Asks the gateway whether a worker is ready: 0 if it answers 200, else 1. HEALTHCHECK runs it without a shell."""

from __future__ import annotations

import os
import ssl
import sys
import urllib.error
import urllib.request
from http.client import HTTPException

PORT = os.environ.get("PORT") or os.environ.get("AIP_HTTP_PORT") or "8080"  # as serving/container.py has it
DEFAULT = f"http://127.0.0.1:{PORT}/health"


def main() -> int:
    """`python docker/health.py [URL]`."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(f"usage: health.py [URL]    0 if it answers 200 (default: {DEFAULT})")
        return 0
    url = sys.argv[1] if len(sys.argv) > 1 else DEFAULT
    # The certificate is for the world's name of it, not for loopback.
    tls = ssl.create_default_context()
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    # No proxy: an HTTP_PROXY of the host may have been handed to the container.
    without_proxy, over_tls = urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=tls)
    opener = urllib.request.build_opener(without_proxy, over_tls)
    for address in (url, url.replace("http://127.0.0.1", "https://127.0.0.1")):
        try:
            with opener.open(address, timeout=4) as reply:
                return 0 if reply.status == 200 else 1
        except urllib.error.HTTPError as err:
            print(f"{address}: {err}", file=sys.stderr)
            return 1
        except (OSError, HTTPException) as err:  # a gateway with `tls` has no plain port
            print(f"{address}: {err}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
