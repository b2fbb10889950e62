"""Which model names and versions TorchServe can serve.

They travel in URLs (`/predictions/NAME/VERSION`), in `load_models` (`NAME=URL,NAME=URL`) and in a file name.
"""

from __future__ import annotations

import re

# Upstream's own rule (model_packaging_utils.py:check_model_name_regex_or_exit), without its trailing newline.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_\-.]*")
VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_\-.+]*")
LONGEST = 200  # characters; file names end at 255 bytes, and a suffix has to fit too


def name_problem(name: str, archive_format: str) -> str | None:
    """Why TorchServe cannot serve a model of this name, or None."""
    if not NAME.fullmatch(name):
        return "expected letters, digits, _ - and . only, a letter or digit first"
    if ".." in name:
        return "TorchServe refuses every URL with two dots in a row (ModelArchive.java:54)"
    if name.lower() == "all" and archive_format == "no-archive":
        return "load_models=all means every model in the store (ModelServer.java:173)"
    return _common_problem(name)


def version_problem(version: str) -> str | None:
    """Why TorchServe cannot serve a model of this version, or None."""
    if not VERSION.fullmatch(version):
        return "expected letters, digits, _ - . and + only, a letter or digit first"
    if version == "all":
        return "GET /models/NAME/all means every version (ApiUtils.java:81)"
    return _common_problem(version)


def _common_problem(text: str) -> str | None:
    if len(text) > LONGEST:
        return f"expected at most {LONGEST} characters"
    if text.startswith("token"):  # TokenAuthorizationHandler.java:43
        return "TorchServe takes management calls with /token in them for token calls"
    return None
