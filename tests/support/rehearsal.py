"""Does what an engine would do with the Dockerfile, without one: stages are directories, RUN is chroot(8).

It needs root, debootstrap and a mirror of Debian; what stands for `FROM debian:…` is a fresh minimal Debian 12,
not that image. Everything is mounted in a mount namespace of its own, which goes away with the command. There are
no layers, no cache and no seccomp filter; an engine's own behaviour is not rehearsed.

    python -m tests.support.rehearsal DIR [--build-arg NAME=VALUE] [--env NAME[=VALUE]] [--bind PATH[:TARGET]]

--env and --bind hand this machine's way to its package indexes (PIP_*, certificates) to RUN; nothing of it stays.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.support import dockerfile
from tests.support.dockerfile import Dockerfile, Instruction, Stage

ROOT = Path(__file__).resolve().parent.parent.parent
MIRROR = [os.environ["DEBIAN_MIRROR"]] if "DEBIAN_MIRROR" in os.environ else []  # else debootstrap's own
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DOCKER_CLEAN = """DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb"; };
Dir::Cache::pkgcache ""; Dir::Cache::srcpkgcache "";
"""
SHELLS = ("usr/bin/dash", "usr/bin/bash")  # to which /bin/sh, /bin/bash and /bin/rbash lead in Debian 12


@dataclass
class Image:
    """A stage that was carried out: its files and its configuration."""

    files: Path
    env: dict[str, str] = field(default_factory=lambda: {"PATH": PATH})
    workdir: str = "/"
    user: str = "0:0"
    entrypoint: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)


@dataclass
class Builder:
    """Carries a Dockerfile out.

    Attributes:
        to: the directory in which each stage gets one of its own.
        given: --build-arg's.
        env: variables that RUN sees beside the Dockerfile's.
        bind: paths of this machine that RUN sees, and where; read-only.
    """

    plan: Dockerfile
    to: Path
    given: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    bind: Mapping[str, str] = field(default_factory=dict)
    done: dict[str, Image] = field(default_factory=dict)

    def build(self, name: str) -> Image:
        """The image of a stage, or of what stands for an image of Debian; what it is made from is made first."""
        if name not in self.done:
            stage = self.plan.stage(name)
            self.done[name] = self._carry_out(stage) if stage else self._debian(name)
        return self.done[name]

    def _debian(self, name: str) -> Image:
        assert name.startswith("debian:bookworm"), f"nothing here stands for {name}"
        files = self.to / "debian"
        if not files.exists():
            say(f"FROM {name}: debootstrap")
            unfinished = self.to / "debian.part"
            shutil.rmtree(unfinished, ignore_errors=True)
            run(
                ["debootstrap", "--variant=minbase", "bookworm", str(unfinished), *MIRROR],
                stdout=subprocess.DEVNULL,
            )
            apt = unfinished / "etc/apt"  # as the image has them
            mirror = (apt / "sources.list").read_text().split()[1]  # which debootstrap has written there
            security = f"deb {mirror}-security bookworm-security main\ndeb {mirror} bookworm-updates main\n"
            (apt / "sources.list.d/updates.list").write_text(security)
            (apt / "apt.conf.d/docker-clean").write_text(DOCKER_CLEAN)
            unfinished.rename(files)
        return Image(files)

    def _carry_out(self, stage: Stage) -> Image:
        base = self.build(stage.base)
        image = Image(self.to / stage.name, dict(base.env), base.workdir, base.user)
        if not stage.instructions:
            return base
        say(f"stage {stage.name}")
        shutil.rmtree(image.files, ignore_errors=True)
        run(["cp", "-a", "--reflink=auto", str(base.files), str(image.files)])
        arguments: dict[str, str] = {}
        for instruction in stage.instructions:
            self._do(instruction, image, arguments)
        return image

    def _do(self, instruction: Instruction, image: Image, arguments: dict[str, str]) -> None:
        name, value = instruction.name, dockerfile.expand(instruction.value, {**arguments, **image.env})
        if name == "ARG":
            for argument, default in instruction.pairs().items():
                known = {
                    **self.plan.arguments,
                    **({argument: default} if default is not None else {}),
                    **self.given,
                }
                arguments.update({argument: known[argument]} if argument in known else {})
        elif name == "ENV":
            pairs = Instruction(name, {}, value).pairs()
            image.env.update({variable: text or "" for variable, text in pairs.items()})
        elif name == "WORKDIR":
            image.workdir = value
            (image.files / value.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif name == "COPY":
            self._copy(instruction, image, value.split())
        elif name == "RUN":
            say(f"RUN {instruction.value[:100]}")
            self._run(instruction.value, image, arguments)
        elif name == "USER":
            image.user = value
        elif name == "ENTRYPOINT":
            image.entrypoint = instruction.exec_form()
        elif name == "HEALTHCHECK":
            image.healthcheck = Instruction("CMD", {}, instruction.value.removeprefix("CMD ")).exec_form()

    def _copy(self, instruction: Instruction, image: Image, words: list[str]) -> None:
        *sources, target = words
        into = image.files / os.path.join(image.workdir, target).lstrip("/")
        into.mkdir(parents=True, exist_ok=True)  # all of ours are directories
        for source in sources:
            if stage := instruction.flags.get("from"):
                run(["cp", "-a", f"{self.build(stage).files}{source}/.", str(into)])
            else:
                copy_context(source, into)

    def _run(self, command: str, image: Image, arguments: Mapping[str, str]) -> None:
        mounts = Mounts(image.files)
        mounts.processes_and_devices()
        for source, target in {"/etc/resolv.conf": "/etc/resolv.conf", **self.bind}.items():
            mounts.read_only(source, target)
        variables = {**self.env, **image.env, **arguments}
        chroot = ["chroot", str(image.files), "env", "-i", f"--chdir={image.workdir}"]
        chroot += [f"{name}={value}" for name, value in variables.items()]
        run(
            [
                "unshare",
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
                *mounts.then(*chroot, "/bin/sh", "-c", command),
            ]
        )
        mounts.remove_places()


def copy_context(source: str, into: Path) -> None:
    """What .dockerignore leaves of a file or directory of the repository; nothing is a mistake."""
    wanted = source.removeprefix("./").rstrip("/")
    found = dockerfile.context(ROOT, wanted)
    assert found, f"COPY {source}: nothing of it is in the context"
    for path in found:
        target = into / (path.relative_to(wanted) if (ROOT / wanted).is_dir() else path.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, target)


class Mounts:
    """Lines of shell that mount under a root directory, for a mount namespace of its own.

    Everything of this machine is read-only in it: what a package's script writes must not land out here.
    """

    def __init__(self, files: Path) -> None:
        self.files = files
        self.lines = ["set -e"]
        self.made: list[Path] = []

    def place(self, target: str, *, directory: bool) -> Path:
        """Where to mount; made where it is missing, as an engine does."""
        place = self.files / target.lstrip("/")
        missing = [path for path in (place, *place.parents) if not path.exists()]
        self.made += missing
        (place if directory else place.parent).mkdir(parents=True, exist_ok=True)
        if not place.exists():
            place.touch()
        return place

    def read_only(self, source: str | Path, target: str) -> None:
        """A file or directory of this machine."""
        place = self.place(target, directory=Path(source).is_dir())
        self.lines += [shlex.join(["mount", "--bind", str(source), str(place)])]
        self.lines += [shlex.join(["mount", "--options", "remount,bind,ro", str(place)])]

    def memory(self, target: str, options: str) -> Path:
        """A tmpfs."""
        place = self.place(target, directory=True)
        self.lines.append(f"mount --types tmpfs --options {options} tmpfs {shlex.quote(str(place))}")
        return place

    def processes_and_devices(self) -> None:
        """/proc, and the devices that a container has."""
        self.lines.append(f"mount --types proc proc {shlex.quote(str(self.place('proc', directory=True)))}")
        dev = shlex.quote(str(self.memory("dev", "mode=755")))
        for name in ("null", "zero", "full", "random", "urandom"):
            self.lines.append(f"touch {dev}/{name} && mount --bind /dev/{name} {dev}/{name}")
        self.lines.append(
            f"mkdir {dev}/shm && mount --types tmpfs --options mode=1777,nosuid,nodev,noexec tmpfs {dev}/shm"
        )
        self.lines.append(f"ln -s /proc/self/fd {dev}/fd")

    def then(self, *command: str) -> list[str]:
        """The shell that mounts and becomes the command."""
        return ["sh", "-c", "\n".join([*self.lines, f"exec {shlex.join(command)}"])]

    def remove_places(self) -> None:
        """Takes away what `place` made, where nothing has come to lie in it."""
        for path in self.made:
            if path.is_file() and path.stat().st_size == 0:
                path.unlink()
            elif path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def start(
    image: Image,
    arguments: Sequence[str] = (),
    *,
    volumes: Mapping[Path, str] | None = None,
    entrypoint: Sequence[str] | None = None,
    env: Mapping[str, str] | None = None,
    tmp_options: str = "mode=1777",
    **popen: object,
) -> subprocess.Popen[bytes]:
    """`docker run --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges --network none`.

    Beside that, the shells are taken away. The process that it returns is unshare(1): its end is the container's.
    """
    mounts = Mounts(image.files)
    files = shlex.quote(str(image.files))
    mounts.lines += ["ip link set lo up", f"mount --bind {files} {files}"]
    mounts.processes_and_devices()
    mounts.lines.append(f"mount --types sysfs --options ro sysfs {files}/sys")
    hosts = shlex.quote(str(image.files / "dev" / "hosts"))  # an engine writes them
    mounts.lines.append(f"hostname container && echo 127.0.0.1 localhost container > {hosts}")
    mounts.lines.append(f"mount --bind {hosts} {shlex.quote(str(mounts.place('etc/hosts', directory=False)))}")
    mounts.memory("tmp", f"nosuid,nodev,{tmp_options}")
    for source, target in (volumes or {}).items():
        mounts.read_only(source, target)
    for shell in SHELLS:
        mounts.read_only("/dev/null", shell)
    mounts.lines.append(f"mount --options remount,bind,ro {files}")
    uid, gid = image.user.split(":")
    drop = [
        "setpriv",
        f"--reuid={uid}",
        f"--regid={gid}",
        "--clear-groups",
        "--no-new-privs",
        "--bounding-set=-all",
    ]
    chroot = ["chroot", str(image.files), *drop, "env", "-i", f"--chdir={image.workdir}"]
    chroot += [f"{name}={value}" for name, value in {**image.env, **(env or {})}.items()]
    chroot += [*(image.entrypoint if entrypoint is None else entrypoint), *arguments]
    spaces = ["--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "--kill-child"]
    return subprocess.Popen(["unshare", *spaces, *mounts.then(*chroot)], **popen)  # type: ignore[call-overload, no-any-return]


def first_process(container: subprocess.Popen[bytes]) -> int:
    """The process that has id 1 in the container, by its id out here. Raises RuntimeError if it has ended."""
    while container.poll() is None:
        if children := Path(f"/proc/{container.pid}/task/{container.pid}/children").read_text().split():
            return int(children[0])
        time.sleep(0.01)
    raise RuntimeError(f"the container ended with {container.returncode}")


def beside(container: subprocess.Popen[bytes], command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Runs a command of this machine in the container's network."""
    line = ["nsenter", "--target", str(first_process(container)), "--net", *command]
    return subprocess.run(
        line, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )


def run(command: Sequence[str], **options: object) -> None:
    """Raises CalledProcessError."""
    subprocess.run(command, check=True, **options)  # type: ignore[call-overload]


def say(line: str) -> None:
    """Progress goes to stderr."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def arguments(line: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line of the docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.support.rehearsal", description="docker build, without Docker."
    )
    parser.add_argument("to", type=Path, metavar="DIR", help="gets a directory for each stage")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--env", action="append", default=[], metavar="NAME[=VALUE]", help="a variable for RUN")
    parser.add_argument(
        "--bind", action="append", default=[], metavar="PATH[:TARGET]", help="a path for RUN, read-only"
    )
    return parser.parse_args(line)


def built(options: argparse.Namespace) -> Image:
    """The image of docker/Dockerfile."""
    options.to.mkdir(parents=True, exist_ok=True)
    given = dict(pair.split("=", 1) for pair in options.build_arg)
    variables = (variable.partition("=") for variable in options.env)
    passed = {name: value if equals else os.environ[name] for name, equals, value in variables}
    paths = {source: target or source for source, _, target in (path.partition(":") for path in options.bind)}
    plan = dockerfile.read(ROOT / "docker" / "Dockerfile", given)
    return Builder(plan, options.to, given, passed, paths).build("server")


if __name__ == "__main__":
    say(f"built {built(arguments()).files}")
