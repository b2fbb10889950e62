import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import pytest

from archiver import build as building
from archiver import pack
from archiver.errors import Refused
from archiver.layout import Member
from archiver.manifest import read_sums
from archiver.recipe import Flags, read
from archiver.verify import problems
from archiver.weights import safetensors_problem
from tests.archiver.conftest import write_model
from tests.support.archives import SAFELY

FORMATS = list(pack.SUFFIXES)


@pytest.fixture
def build(model, store, room):
    """Builds in this process; without a worker unless asked."""
    lines = []

    def run(
        form="zip-store",
        *,
        folder=model,
        to=store,
        opened=False,
        force=False,
        progress=lambda *_: None,
        **flags,
    ):
        given = {"model_name": "m", "version": "1.0", "task": "text-classification", **flags}
        recipe = read(Flags(model=str(folder), archive_format=form, **given))
        return building.build(
            recipe,
            to,
            form,
            force=force,
            say=lines.append,
            progress=progress,
            handler_room=room,
            opened=opened,
        )

    run.lines = lines
    return run


def unpack(path, to):
    """As TorchServe does."""
    if path.is_dir():
        return path
    if path.suffix == ".mar":
        with zipfile.ZipFile(path) as archive:
            archive.extractall(to)
        return to
    with tarfile.open(path) as tar:
        tar.extractall(to, **SAFELY)
    (inner,) = to.iterdir()
    return inner


def files(root):
    return sorted(
        (Path(place) / name).relative_to(root).as_posix()
        for place, _, names in os.walk(root, followlinks=True)
        for name in names
    )


@pytest.mark.parametrize("form", FORMATS)
def test_everything_has_its_place(build, form, tmp_path, model):
    root = unpack(build(form), tmp_path / "out")
    assert files(root) == [
        "MAR-INF/MANIFEST.json",
        "MAR-INF/SHA256SUMS",
        "handler/__init__.py",
        "handler/config.py",
        "handler/errors.py",
        "handler/rules.py",
        "handler/tasks/__init__.py",
        "model-config.yaml",
        "model/1_Pooling/config.json",
        "model/config.json",
        "model/model.safetensors",
        "model/tokenizer.json",
        "model/tokenizer_config.json",
        "transformer_handler.py",
    ]
    assert (root / "model/1_Pooling/config.json").read_bytes() == (model / "1_Pooling/config.json").read_bytes()
    subprocess.run(["sha256sum", "--check", "--strict", "MAR-INF/SHA256SUMS"], cwd=root, check=True)
    manifest = json.loads((root / "MAR-INF/MANIFEST.json").read_text())
    assert manifest == {
        "createdOn": "01/01/1980 00:00:00",
        "runtime": "python",
        "model": {
            "modelName": "m",
            "handler": "transformer_handler.py",
            "modelVersion": "1.0",
            "configFile": "model-config.yaml",
        },
        "archiverVersion": "0.12.0",
    }


def test_the_names_are_upstreams(build, store):
    for form in ("zip-store", "tgz", "no-archive"):
        build(form)
    assert sorted(path.name for path in store.iterdir()) == ["m", "m.mar", "m.tar.gz"]


def fingerprint(path):
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in files(path)}


def build_elsewhere(house, folder, form, *, shuffle, env, umask):
    """In another process, from a copy whose files were made in another order, at another time."""
    source = write_model(folder / "first")
    copy = folder / "copy"
    names = [path for path in source.rglob("*") if path.is_file()]
    random.Random(shuffle).shuffle(names)
    for number, path in enumerate(names):
        place = copy / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
        place.chmod([0o600, 0o644, 0o755][(number + shuffle) % 3])
        os.utime(place, (1e9 + shuffle * 1e6 + number,) * 2)
    (folder / "store").mkdir()
    line = [sys.executable, "-P", "-m", "archiver", "build", "--model", copy, "--task", "text-classification"]
    line += ["--model-name", "m", "--version", "1", "--export-path", "store", "--archive-format", form]
    done = subprocess.run(
        line,
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(house), "HOME": str(folder), **env},
        preexec_fn=lambda: os.umask(umask),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return fingerprint(Path(done.stdout.strip()))


@pytest.mark.parametrize("form", FORMATS)
def test_the_same_inputs_give_the_same_bytes(house, tmp_path, form):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    here = {"TZ": "Asia/Tokyo", "LC_ALL": "C"}
    there = {"TZ": "America/New_York", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "7"}
    one = build_elsewhere(house, tmp_path / "a", form, shuffle=1, env=here, umask=0o077)
    other = build_elsewhere(house, tmp_path / "b", form, shuffle=2, env=there, umask=0o002)
    assert one == other


def test_source_date_epoch(build, monkeypatch, tmp_path):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    path = build()
    with zipfile.ZipFile(path) as archive:
        assert {info.date_time for info in archive.infolist()} == {(2023, 11, 14, 22, 13, 20)}
        assert json.loads(archive.read("MAR-INF/MANIFEST.json"))["createdOn"] == "14/11/2023 22:13:20"
    with tarfile.open(build("tgz")) as tar:
        assert {entry.mtime for entry in tar} == {1_700_000_000}
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    with zipfile.ZipFile(build(force=True)) as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "99999999999999")
    with zipfile.ZipFile(build(force=True)) as archive:
        assert archive.infolist()[0].date_time == (2107, 12, 31, 23, 59, 58)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(Refused, match="SOURCE_DATE_EPOCH"):
        build(force=True)


def test_a_zip_is_one_that_java_reads(build):
    with zipfile.ZipFile(build()) as archive:
        for info in archive.infolist():
            assert info.compress_type == zipfile.ZIP_STORED
            assert info.flag_bits & 0x08 == 0  # sizes in front
            assert info.external_attr >> 16 == 0o100644


def test_a_tar_says_nothing_of_the_machine(build):
    path = build("tgz")
    assert path.read_bytes()[3] == 0  # flags: no file name in gzip's header
    with tarfile.open(path) as tar:
        for entry in tar:
            assert (entry.uid, entry.gid, entry.uname, entry.gname, entry.mode) == (0, 0, "", "", 0o644)
            assert entry.name.startswith("m/")


def test_no_archive_links_and_copies_nothing(build, model):
    path = build("no-archive")
    assert (path / "model").is_symlink()
    assert (path / "model").resolve() == model
    (model / "pytorch_model.bin").write_bytes(b"x")
    path = build("no-archive", force=True)
    assert not (path / "model").is_symlink()  # a link would bring the pickle in
    assert "model/pytorch_model.bin" not in files(path)
    assert (path / "model/model.safetensors").is_symlink()
    assert (path / "model/1_Pooling/config.json").is_symlink()


def test_names_what_was_left_out(build, model):
    (model / "pytorch_model.bin").write_bytes(b"x")
    build()
    assert build.lines == ["left out pytorch_model.bin: a pickle"]


def test_zip64_where_an_entry_needs_it(tmp_path, monkeypatch):
    """Its sizes must be in front of it, in the ZIP64 field. The limit is lowered: 4 GiB take too long."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1000)
    big = tmp_path / "big"
    size = 1005
    big.write_bytes(bytes(size))
    with (tmp_path / "m.mar").open("wb") as file:
        members = [Member("big", big, size), Member("small", b"x", 1)]
        pack.write_zip(file, members, 315_532_800, lambda n: None, deflate=False)
    with zipfile.ZipFile(tmp_path / "m.mar") as archive, (tmp_path / "m.mar").open("rb") as raw:
        large, small, _ = archive.infolist()
        header = raw.read(30 + 3 + 20)
        assert header[18:26] == b"\xff" * 8
        assert header[33:37] == b"\x01\x00\x10\x00"
        assert int.from_bytes(header[37:45], "little") == int.from_bytes(header[45:53], "little") == size
        assert (large.file_size, large.flag_bits) == (size, 0)
        raw.seek(small.header_offset)
        assert raw.read(6)[4:6] == (20).to_bytes(2, "little")  # the small one has no need of ZIP64


def test_the_weights_are_written_once(build, model, store, tmp_path, monkeypatch):
    """Neither the store nor the temporary directory ever holds more than 1.1 times the weights."""
    shutil.rmtree(model)
    write_model(model, 60_000_000)
    private = tmp_path / "tmp"
    private.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(private))
    peak = 0
    running = True

    def used(folder):
        total = 0
        for place, _, names in os.walk(folder):
            for name in names:
                try:
                    total += os.lstat(os.path.join(place, name)).st_blocks * 512
                except FileNotFoundError:
                    continue
        return total

    def watch():
        nonlocal peak
        while running:
            peak = max(peak, used(store) + used(private))
            time.sleep(0.002)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        build(opened=True)
    finally:
        running = False
        thread.join()
    assert 60_000_000 <= peak <= 66_000_000
    assert list(private.iterdir()) == []


@pytest.mark.parametrize("form", FORMATS)
def test_a_failed_build_keeps_the_old_and_leaves_nothing(build, store, form):
    path = build(form)
    before = fingerprint(path)

    def fail(done, total):
        if done > 9000:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        build(form, force=True, progress=fail)
    assert fingerprint(path) == before
    assert list(store.iterdir()) == [path]


def test_a_file_that_changes_while_it_is_read_fails_the_build(build, model, store):
    def grow(done, total):
        with (model / "tokenizer.json").open("ab") as file:
            file.write(b" ")

    for form in FORMATS:
        with pytest.raises(Refused, match=r"tokenizer\.json: changed while it was read"):
            build(form, progress=grow)
    assert list(store.iterdir()) == []


def test_an_archive_is_replaced_only_by_force(build, model):
    for form in FORMATS:
        if form == "default":
            continue  # the same name as zip-store
        path = build(form)
        before = fingerprint(path)
        (model / "tokenizer.json").write_text("{ }")
        with pytest.raises(Refused, match="exists already; --force replaces it"):
            build(form)
        assert fingerprint(path) == before if form != "no-archive" else True
        assert fingerprint(build(form, force=True)) != before
        (model / "tokenizer.json").write_text("{}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("form", ["zip-store", "no-archive"])
def test_an_interrupted_build_leaves_nothing_and_keeps_the_old(house, store, tmp_path, number, form):
    model = write_model(tmp_path / "large", 300_000_000)
    old = store / ("m.mar" if form == "zip-store" else "m")
    kept = old if form == "zip-store" else old / "MAR-INF" / "MANIFEST.json"
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(b"old")
    private = tmp_path / "tmp"
    private.mkdir()
    line = [
        sys.executable,
        "-P",
        "-m",
        "archiver",
        "build",
        "--model",
        model,
        "--task",
        "text-classification",
    ]
    line += [
        "--model-name",
        "m",
        "--version",
        "1",
        "--export-path",
        store,
        "--force",
        "--archive-format",
        form,
    ]
    process = subprocess.Popen(
        line,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(house), "TMPDIR": str(private)},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 30
    while not [path for path in store.iterdir() if path != old] and time.monotonic() < deadline:
        time.sleep(0.001)
    assert [path for path in store.iterdir() if path != old], "no build was seen to interrupt"
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in said
    assert list(store.iterdir()) == [old]
    assert list(private.iterdir()) == []
    assert kept.read_bytes() == b"old"


def test_extra_files_keep_their_tree(build, tmp_path):
    extra = tmp_path / "extra"
    (extra / "inner").mkdir(parents=True)
    (extra / "config.json").write_text("1")
    (extra / "inner" / "config.json").write_text("2")
    (extra / ".hidden").write_text("3")
    (extra / "x.pkl").write_text("4")
    (tmp_path / "one, two.txt").write_text("5")
    (tmp_path / "three.txt").write_text("6")
    path = build(extra_files=(f"{extra}, {tmp_path / 'three.txt'}", str(tmp_path / "one, two.txt")))
    names = set(zipfile.ZipFile(path).namelist())
    assert {"extra/config.json", "extra/inner/config.json", "three.txt", "one, two.txt"} <= names
    assert not {"extra/.hidden", "extra/x.pkl"} & names
    assert any(line.startswith("left out") and "x.pkl" in line for line in build.lines)


@pytest.mark.parametrize("name", ["a\nb.txt", "a\\b.txt", "\udcff.txt"])
def test_an_extra_file_has_a_name_that_every_machine_can_unpack(build, tmp_path, name):
    extra = tmp_path / "extra"
    extra.mkdir()
    (extra / name).write_text("1")
    with pytest.raises(Refused, match="not every machine can unpack"):
        build(extra_files=(str(extra),))


def test_extra_files_that_are_none(build, tmp_path):
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, says in (("empty", "holds no file"), ("pipe", "is not a regular file")):
        with pytest.raises(Refused, match=says):
            build(extra_files=(str(tmp_path / name),))


def test_a_directory_that_is_no_archive_is_never_replaced(build, tmp_path, store):
    """Least of all the model itself, of which --force would leave a link to nothing."""
    model = write_model(store / "m", 1000)
    for force in (False, True):
        with pytest.raises(Refused, match="is a directory, and no archive; nothing replaces it"):
            build("no-archive", folder=model, force=force)
    assert (model / "model.safetensors").is_file()
    archive = build("no-archive", model_name="other")
    own = str(archive / "MAR-INF" / "SHA256SUMS")
    with pytest.raises(Refused, match="holds files that are to be packed"):
        build("no-archive", model_name="other", force=True, extra_files=(own,))
    assert problems(archive) == []


def test_extra_files_take_nobodys_place(build, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for name in ("a/x.txt", "b/x.txt", "transformer_handler.py", "y.pkl"):
        (tmp_path / name).write_text(name)
    wanted = ("a/x.txt", "b/x.txt", "transformer_handler.py", "y.pkl", "gone")
    with pytest.raises(Refused) as caught:
        build(extra_files=tuple(str(tmp_path / name) for name in wanted))
    told = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 4
    for word in (
        "another x.txt",
        "transformer_handler.py has a meaning",
        "y.pkl: a pickle",
        "gone: there is no such file",
    ):
        assert word in told


def test_sums_are_read_as_written(build):
    with zipfile.ZipFile(build()) as archive:
        sums = read_sums(archive.read("MAR-INF/SHA256SUMS"))
        assert list(sums) == sorted(sums)
        assert set(sums) == set(archive.namelist()) - {"MAR-INF/SHA256SUMS"}


def test_a_fixture_is_what_it_claims(model):
    path = model / "model.safetensors"
    assert safetensors_problem(path, path.stat().st_size) is None
