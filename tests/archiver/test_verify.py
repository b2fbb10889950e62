import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from functools import partial
from pathlib import Path

import pytest

from archiver import build as building
from archiver.errors import Refused
from archiver.listing import describe, text
from archiver.recipe import Flags, read
from archiver.verify import problems
from tests.support.archives import SAFELY


@pytest.fixture
def build(model, store, room):
    def run(form="zip-store"):
        recipe = read(
            Flags(model=str(model), model_name="m", version="1", task="text-classification", archive_format=form)
        )
        return building.build(recipe, store, form, force=True, say=print, handler_room=room, opened=False)

    return run


def trouble(path):
    try:
        return problems(path)
    except Refused as error:
        return list(error.problems)


@pytest.mark.parametrize("form", ["zip-store", "default", "tgz", "no-archive"])
def test_a_whole_one_is_whole(build, form):
    assert trouble(build(form)) == []


def rewrite(path, change):
    """Another zip of the same files, some changed: whole as a zip, not as an archive."""
    with zipfile.ZipFile(path) as old:
        content = {name: old.read(name) for name in old.namelist()}
    change(content)
    with zipfile.ZipFile(path, "w") as new:
        for name, data in content.items():
            new.writestr(name, data)


def added(content, name):
    """One more file, with its digest among the others."""
    content[name] = b"x"
    content["MAR-INF/SHA256SUMS"] += f"{hashlib.sha256(b'x').hexdigest()}  {name}\n".encode()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda c: c.pop("model/tokenizer.json"), ["model/tokenizer.json: is missing"]),
        (lambda c: c.update({"model/x.bin": b""}), ["model/x.bin: does not belong here"]),
        (lambda c: c.update({"model/tokenizer.json": b"[]"}), ["model/tokenizer.json: has changed"]),
        (lambda c: c.pop("MAR-INF/SHA256SUMS"), ["MAR-INF/SHA256SUMS: is missing"]),
        (lambda c: c.update({"MAR-INF/SHA256SUMS": b"x"}), ["MAR-INF/SHA256SUMS: not a digest"]),
        *(
            (partial(added, name=name), [f"{name}: is no path inside an archive"])
            for name in ("../x.txt", "/x.txt", "model/../../x.txt", "a\\x.txt")
        ),
    ],
)
def test_names_what_is_missing_added_or_changed(build, change, expected):
    path = build()
    rewrite(path, change)
    found = trouble(path)
    assert len(found) == len(expected)
    for line, start in zip(found, expected, strict=True):
        assert line.startswith(start)


def test_every_flipped_byte_that_java_reads_is_found(build):
    """All of the local headers but dates and versions, and a byte in the middle of every content."""
    path = build()
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        places = []
        for info in archive.infolist():
            start = info.header_offset
            places += [start + i for i in range(30 + len(info.filename)) if i not in (4, 5, 10, 11, 12, 13)]
            places += [start + 30 + len(info.filename) + info.file_size // 2]
    for place in places:
        broken = bytearray(whole)
        broken[place] ^= 0x40
        path.write_bytes(broken)
        assert trouble(path), f"byte {place} was flipped unseen"


def test_a_truncated_one_is_not_whole(build):
    for form in ("zip-store", "tgz"):
        path = build(form)
        whole = path.read_bytes()
        for share in (0.1, 0.5, 0.9, 0.999):
            path.write_bytes(whole[: int(len(whole) * share)])
            assert trouble(path)
        path.write_bytes(b"")
        assert trouble(path)


def test_a_flipped_byte_of_a_tgz_is_found(build):
    path = build("tgz")
    whole = path.read_bytes()
    for place in range(40, len(whole), 97):
        broken = bytearray(whole)
        broken[place] ^= 0x10
        path.write_bytes(broken)
        assert trouble(path), f"byte {place} was flipped unseen"


def test_a_directory_whose_weights_changed_is_not_whole(build, model):
    path = build("no-archive")
    (model / "tokenizer.json").write_text("[]")
    (line,) = trouble(path)
    assert line.startswith("model/tokenizer.json: has changed")
    (model / "tokenizer.json").unlink()
    assert trouble(path) == ["model/tokenizer.json: is missing"]


def test_what_is_no_archive(tmp_path, build):
    (tmp_path / "x.mar").write_text("hello")
    assert "is neither" in trouble(tmp_path / "x.mar")[0]
    assert "no such file" in trouble(tmp_path / "gone.mar")[0]
    (tmp_path / "bomb.tar.gz").write_bytes(gzip.compress(b"not a tar" * 1000))
    assert "is damaged" in trouble(tmp_path / "bomb.tar.gz")[0]


def test_says_what_is_in_an_archive(build, model):
    for form in ("zip-store", "default", "tgz", "no-archive"):
        path = build(form)
        found = describe(path)
        assert (found["format"], found["model"], found["version"], found["task"]) == (
            form,
            "m",
            "1",
            "text-classification",
        )
        assert found["archiver_version"] == "0.12.0"
        assert found["transformers_version"] == "5.0.0"
        assert found["architectures"] == ["BertForSequenceClassification"]
        assert found["config"]["batchSize"] == 64
        weights = found["files"]["model/model.safetensors"]
        assert weights["bytes"] == (model / "model.safetensors").stat().st_size
        shown = text(found)
        assert weights["sha256"] in shown
        assert "batchSize: 64" in shown
        json.dumps(found)


def test_an_archive_of_upstreams_is_described_and_not_called_whole(tmp_path, model, room):
    """The real torch-model-archiver, as a user has run it until now."""
    line = [Path(sys.executable).with_name("torch-model-archiver"), "--model-name", "up", "--version", "3"]
    line += ["--handler", room / "transformer_handler.py", "--extra-files", model, "--export-path", tmp_path]
    subprocess.run(line, check=True, env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True)
    found = describe(tmp_path / "up.mar")
    assert (found["model"], found["version"], found["format"]) == ("up", "3", "default")
    assert trouble(tmp_path / "up.mar")[0].startswith("MAR-INF/SHA256SUMS: is missing")


def test_the_manifest_is_upstreams(tmp_path, model, room, build):
    """Key for key and byte for byte, but for the clock."""
    config = tmp_path / "model-config.yaml"
    config.write_text("{}")
    line = [Path(sys.executable).with_name("torch-model-archiver"), "--model-name", "m", "--version", "1"]
    line += ["--handler", room / "transformer_handler.py", "--config-file", config, "--export-path", tmp_path]
    subprocess.run(line, check=True, env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True)
    theirs = zipfile.ZipFile(tmp_path / "m.mar").read("MAR-INF/MANIFEST.json").decode().splitlines()
    ours = zipfile.ZipFile(build()).read("MAR-INF/MANIFEST.json").decode().splitlines()
    assert [line for line in ours if "createdOn" not in line] == [
        line for line in theirs if "createdOn" not in line
    ]


def test_a_tar_whose_member_is_a_link_is_not_followed(build, tmp_path):
    path = build("tgz")
    with tarfile.open(path) as old:
        old.extractall(tmp_path / "out", **SAFELY)
    target = tmp_path / "out" / "m" / "model" / "tokenizer.json"
    target.unlink()
    target.symlink_to("/etc/hostname")
    with tarfile.open(path, "w:gz") as new:
        new.add(tmp_path / "out" / "m", "m")
    shutil.rmtree(tmp_path / "out")
    assert trouble(path)
