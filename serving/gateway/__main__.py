"""Keys, and what a running gateway is told: `python -m serving.gateway --help`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from serving.errors import CannotServe
from serving.gateway import keys
from serving.gateway.haproxy import ask
from serving.gateway.render import backend_of
from serving.scratch import PREFIX


def main() -> int:
    """Does what the command line asks for; 0 where it could be done, else 1."""
    args = read_arguments()
    try:
        for line in args.do(args):
            print(line)
    except (CannotServe, OSError) as err:
        print(f"error: {err}", file=sys.stderr)
        return 1
    return 0


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m serving.gateway", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    key = commands.add_parser("key", help="make a key: it is printed once, and the file gets its hash")
    key.add_argument("name", metavar="NAME", help="whose it is; the log says it")
    key.add_argument("--scope", choices=(*keys.SCOPES, ",".join(keys.SCOPES)), default=keys.SCOPES[0])
    key.add_argument(
        "--file", metavar="FILE", type=Path, required=True, help="the file of keys, which is appended to"
    )
    key.set_defaults(do=make_key)
    weight = commands.add_parser("weight", help="how much of a model's requests its canary gets, from now on")
    weight.add_argument("model", metavar="MODEL")
    weight.add_argument("percent", metavar="PERCENT", type=int, choices=range(101), help="0 to 100")
    weight.add_argument("--socket", metavar="FILE", type=Path, help="admin.sock of the gateway, where several run")
    weight.set_defaults(do=set_weight)
    args: argparse.Namespace = parser.parse_args()
    return args


def make_key(args: argparse.Namespace) -> list[str]:
    """Appends a key's hash to the file."""
    token, line = keys.new(args.name, args.scope)
    if keys.LINE.fullmatch(line) is None:
        raise CannotServe(f"NAME: {args.name!r}: expected letters, digits, `.`, `_` and `-`, at most 64")
    with args.file.open("a") as file:
        file.write(line + "\n")
    args.file.chmod(0o600)
    return [token]


def set_weight(args: argparse.Namespace) -> list[str]:
    """Tells the running gateway."""
    path = args.socket or _only_socket()
    weights, backend = f"{path.parent}/canary.map", backend_of(args.model)
    known = [line.split(" ")[1] for line in ask(path, f"show map {weights}").splitlines() if line]
    if backend not in known:
        raise CannotServe(f"{args.model} has no canary; {len(known)} models have")
    ask(path, f"set map {weights} {backend} {args.percent}")
    return [f"{args.model}: {args.percent} of 100 requests go to its canary"]


def _only_socket() -> Path:
    found = sorted(Path(tempfile.gettempdir()).glob(f"{PREFIX}*/gateway/admin.sock"))
    if len(found) != 1:
        raise CannotServe(f"{len(found)} gateways run here; --socket says which is meant")
    return found[0]


if __name__ == "__main__":
    sys.exit(main())
