"""Where do the images come from? A registry that can be reached; else stand-ins under the same names, plainly said.

A stand-in is made of Debian packages (Python, Redis, Mosquitto, Prometheus) or, where Debian has none, of a small
program of ours that answers what the test asks (Jaeger, Grafana). They are only ever put into a daemon of our own.
"""

import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement

from tests.compose.commands import CannotRun, ran, say
from tests.compose.daemon import Docker, own_namespaces
from tests.compose.packages import Tools, mirror

ROOT: Final = Path(__file__).parents[2]
OURS: Final = "agentserve:compose-test"
_STANDINS: Final = Path(__file__).with_name("standins")
_SUITE: Final = "bookworm"
_PYTHON: Final = "3.11.2"
"""What that release has."""
_SERVICES: Final = ("redis-server", "redis-tools", "mosquitto", "mosquitto-clients", "prometheus", "wget", "python3")
_BUILD_IMAGE: Final = "agentserve-build:compose-test"


@dataclass(frozen=True)
class StandIn:
    """How an imported file system becomes an image: Dockerfile instructions, and folders with their owner."""

    changes: tuple[str, ...]
    folders: Mapping[str, int]


_IMPORTED: Final[Mapping[str, StandIn]] = {
    "redis": StandIn(('CMD ["redis-server"]',), {"data": 999}),
    "eclipse-mosquitto": StandIn(('CMD ["mosquitto"]',), {"mosquitto/config": 1883}),
    "prom/prometheus": StandIn(('ENTRYPOINT ["/usr/bin/prometheus"]',), {"prometheus": 65534}),
}
_WRITTEN: Final = {"jaegertracing/jaeger": "jaeger", "grafana/grafana": "grafana"}
"""Images that Debian has no package for, and our program's name in `standins/`."""


def base_image() -> str:
    """The image that the Dockerfile begins with."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    return next(line.partition("=")[2] for line in lines if line.startswith("ARG PYTHON_IMAGE="))


def pulled(docker: Docker, names: Sequence[str]) -> list[str] | None:
    """The images of `names` that had to be pulled; None, and nothing is left of them, if one cannot be had."""
    new: list[str] = []
    for name in names:
        if docker.works("image", "inspect", name):
            continue
        if not docker.works("pull", "--quiet", name, within_s=600):
            say(f"no image registry gives {name}")
            drop(docker, new)
            return None
        new.append(name)
    return new


def drop(docker: Docker, names: Sequence[str]) -> None:
    """Remove images; those that are not there are no matter."""
    for name in names:
        docker.works("image", "rm", "--force", name)


def build(docker: Docker, *, build_image: str | None = None) -> None:
    """The project's own image from its Dockerfile. `build_image`: one that brings the packages, for no network."""
    if build_image is None:
        options = ("--network", "host")
    else:
        options = ("--network", "none", "--build-arg", f"BUILD_IMAGE={build_image}")
    docker("build", "--quiet", *options, "--tag", OURS, ROOT, within_s=1200)


def stand_ins(docker: Docker, tools: Tools, cache: Path, names: Sequence[str]) -> None:
    """Put an image under each name into our own daemon, and build the project's image on the one for Python."""
    say("NO IMAGE REGISTRY IS REACHABLE: the images below are stand-ins, not the published ones")
    with ThreadPoolExecutor(3) as pool:  # they wait for the disk and the mirror more than they compute
        python = pool.submit(_debian, tools, cache / "python", ("python3", "ca-certificates"))
        services = pool.submit(_debian, tools, cache / "services", _SERVICES)
        wheels = pool.submit(_wheels, cache / "wheels")
        _import(docker, python.result(), base_image(), StandIn(('CMD ["python"]',), {}))
        for name in names:
            if (made := _IMPORTED.get(_repository(name))) is not None:
                _import(docker, services.result(), name, made)
        _import(docker, services.result(), _BUILD_IMAGE + "-services", StandIn((), {}))
        wheels.result()
    _with_wheels(docker, cache / "wheels")
    say(f"  {OURS}: from the Dockerfile itself; wheels fetched here with pip, no network while it builds")
    build(docker, build_image=_BUILD_IMAGE)
    for name in names:
        if (program := _WRITTEN.get(_repository(name))) is not None:
            say(f"  {name}: a stand-in of ours (tests/compose/standins/{program}.py): Debian has no package of it")
            arguments = ("--build-arg", f"SERVICES={_BUILD_IMAGE}-services", "--build-arg", f"OURS={OURS}")
            dockerfile = _STANDINS / "Dockerfile"
            docker("build", "--quiet", "--network", "none", *arguments, "--target", program, "--tag", name,
                   "--file", dockerfile, _STANDINS)  # fmt: skip


def _repository(name: str) -> str:
    return name.rpartition(":")[0]


_MAKE_DEBIAN: Final = """
mount -t tmpfs -o size=3g tmpfs "$1"
debootstrap --variant=minbase --include="$2" "$3" "$1/root" "$4"
cd "$1/root"
rm -rf ./var/cache/apt ./var/lib/apt/lists ./usr/share/doc ./usr/share/man ./usr/share/locale ./usr/share/javascript
ln -s python3 ./usr/bin/python
tar --one-file-system -cf "$5" .
"""
"""In namespaces of its own, since it mounts, and in memory, since dpkg syncs every file."""


def _debian(tools: Tools, root: Path, packages: tuple[str, ...]) -> Path:
    """A minimal Debian with `packages`, as an archive."""
    archive, unfinished = root.with_suffix(".tar"), root.with_suffix(".part")
    if archive.exists():
        return archive
    root.mkdir(exist_ok=True)
    arguments = (root, ",".join(packages), _SUITE, mirror(), unfinished)
    ran(*own_namespaces(), "sh", "-ec", _MAKE_DEBIAN, "debian", *arguments, env=tools.env, within_s=1800)
    return unfinished.rename(archive)


def _import(docker: Docker, archive: Path, name: str, made: StandIn) -> None:
    changes = tuple(part for change in made.changes for part in ("--change", change))
    if not made.folders:
        docker("import", *changes, archive, name)
    else:
        docker("import", archive, _BUILD_IMAGE + "-plain")
        lines = [f"FROM {_BUILD_IMAGE}-plain", *made.changes]
        lines += [f"RUN mkdir -p /{folder} && chown {user} /{folder}" for folder, user in made.folders.items()]
        docker("build", "--quiet", "--network", "none", "--tag", name, "-", stdin="\n".join(lines) + "\n")
    say(f"  {name}: a stand-in of Debian {_SUITE} packages")


def _wheels(folder: Path) -> None:
    """Every package of the image, and what builds our own, as wheels for its Python."""
    shutil.rmtree(folder, ignore_errors=True)  # what a cache kept may be of other versions
    folder.mkdir(parents=True)
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--dest", folder)
    exactly = ("--python-version", _PYTHON, "--only-binary", ":all:")
    (folder / "exactly.txt").write_text(_for_its_python((ROOT / "requirements/image.txt").read_text()))
    ran(*pip, *exactly, "--no-deps", "--require-hashes", "-r", folder / "exactly.txt")
    ran(*pip, *exactly, "hatchling>=1.27", "pip")


def _for_its_python(requirements: str) -> str:
    """The pinned packages that apply to the stand-in's Python: pip would ask whether they apply to ours."""
    kept = []
    for block in re.split(r"\n(?=\S)", requirements):
        head, _, hashes = block.partition("\\")
        requirement = Requirement(head)
        if requirement.marker is None or requirement.marker.evaluate({"python_full_version": _PYTHON}):
            kept.append(f"{requirement.name}{requirement.specifier} \\{hashes}")
    return "\n".join(kept)


def _with_wheels(docker: Docker, wheels: Path) -> None:
    """The image that the packages are installed in: Python, pip, and a folder of wheels as its only index."""
    (wheels / "pip.conf").write_text("[global]\nno-index = true\nfind-links = /wheels\n")
    (wheels / "Dockerfile").write_text(
        f"FROM {base_image()}\nCOPY . /wheels\nCOPY pip.conf /etc/pip.conf\n"
        "RUN python -m zipfile -e /wheels/pip-*.whl /usr/lib/python3/dist-packages"
        " && printf '#!/bin/sh\\nexec /usr/bin/python3 -m pip \"$@\"\\n' > /usr/bin/pip && chmod +x /usr/bin/pip\n"
    )
    docker("build", "--quiet", "--network", "none", "--tag", _BUILD_IMAGE, wheels)


def size_bytes(docker: Docker, name: str = OURS) -> int:
    """How large an image is on disk."""
    return int(json.loads(docker("image", "inspect", name))[0]["Size"])


def named_in(compose_config: Mapping[str, object], wanted: Callable[[str], bool]) -> list[str]:
    """The images of a resolved compose file that `wanted` is true of, each once."""
    services = compose_config["services"]
    if not isinstance(services, dict):
        raise CannotRun("the compose file has no services")
    return sorted({service["image"] for service in services.values() if wanted(service["image"])})
