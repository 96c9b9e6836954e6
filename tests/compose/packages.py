"""Where do Docker and what it needs come from when the machine has none? Debian packages, unpacked into our own folder.

Nothing is installed: the packages are fetched with apt from the mirror that the machine is set up for, and unpacked.
"""

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.compose.commands import CannotRun, ran, say

_DOCKER: Final = (
    *("docker.io", "containerd", "runc", "tini", "iptables", "debootstrap"),
    *("libip4tc2", "libip6tc2", "libxtables12", "libnftnl11", "libnetfilter-conntrack3", "libnfnetlink0", "libmnl0"),
)
_COMPOSE: Final = "docker-compose"
_COMPOSE_SUITE: Final = "trixie"
"""The first Debian release with Compose 2."""
_PLUGIN: Final = Path("usr/libexec/docker/cli-plugins/docker-compose")
_KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"


@dataclass(frozen=True)
class Tools:
    """Unpacked programs: `root` is their file system's root, `plugins` a DOCKER_CONFIG with Compose in it."""

    root: Path
    plugins: Path

    @property
    def env(self) -> Mapping[str, str]:
        """What programs need to find each other and their libraries."""
        library = next(self.root.glob("usr/lib/*-linux-gnu"))
        folders = (self.root / "sbin-first", self.root / "usr/bin", self.root / "usr/sbin")
        return {
            "PATH": os.pathsep.join([*map(str, folders), os.environ["PATH"]]),
            "LD_LIBRARY_PATH": str(library),
            "XTABLES_LIBDIR": str(library / "xtables"),
            "DEBOOTSTRAP_DIR": str(self.root / "usr/share/debootstrap"),
            "DOCKER_CONFIG": str(self.plugins),
        }


def mirror() -> str:
    """The Debian mirror that this machine's apt is set up for."""
    for path in sorted([*Path("/etc/apt/sources.list.d").glob("*"), Path("/etc/apt/sources.list")]):
        if path.is_file():
            for found in re.findall(r"(?:^URIs:|^deb\s+(?:\[[^]]*\]\s+)?)\s*(https?://\S+)", path.read_text(), re.M):
                if found.rstrip("/").endswith("/debian"):
                    return found.rstrip("/")
    raise CannotRun("there is no Docker daemon, and apt knows no Debian mirror to fetch one from: start Docker first")


def fetch_tools(work: Path) -> Tools:
    """Docker's daemon and client, iptables, debootstrap and Compose, unpacked below `work`."""
    if shutil.which("apt-get") is None:
        raise CannotRun("there is no Docker daemon, and no apt to fetch one with: start Docker first")
    say(f"Docker from Debian packages, unpacked into {work}; nothing is installed")
    root = work / "tools"
    if (work / "docker-config").exists():
        return Tools(root, work / "docker-config")
    _unpack(_download(work / "packages", _DOCKER, apt=_own_lists(work, release())), root)
    first = root / "sbin-first"  # the older kind of rules works on every kernel that Docker works on
    first.mkdir()
    for name in ("iptables", "ip6tables"):
        (first / name).symlink_to(f"../usr/sbin/{name}-legacy")
    return Tools(root, fetch_compose(work))


def fetch_compose(work: Path) -> Path:
    """A folder for DOCKER_CONFIG with the Compose plugin."""
    unpacked = work / "compose-package"
    _unpack(_download(work / "compose-packages", (_COMPOSE,), apt=_own_lists(work, _COMPOSE_SUITE)), unpacked)
    plugins = work / "docker-config"
    (plugins / "cli-plugins").mkdir(parents=True)
    shutil.copy2(unpacked / _PLUGIN, plugins / "cli-plugins/docker-compose")
    return plugins


def release() -> str:
    """The code name of this Debian."""
    found = re.search(r"^VERSION_CODENAME=(\w+)$", Path("/etc/os-release").read_text(), re.M)
    if found is None or "ID=debian" not in Path("/etc/os-release").read_text().splitlines():
        raise CannotRun("there is no Docker daemon, and this is no Debian to fetch one from: start Docker first")
    return found[1]


def _own_lists(work: Path, suite: str) -> tuple[str, ...]:
    """Options that make apt use lists of its own below `work`, so that the machine's stay as they are."""
    state = work / f"apt-{suite}"
    for name in ("lists/partial", "cache/archives/partial"):
        (state / name).mkdir(parents=True, exist_ok=True)
    source = state / "sources.list"
    source.write_text(f"deb [signed-by={_KEYRING}] {mirror()} {suite} main\n")
    values = {
        "Dir::Etc::sourcelist": source,
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": state / "lists",
        "Dir::Cache": state / "cache",
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
    }
    options = tuple(part for name, value in values.items() for part in ("-o", f"{name}={value}"))
    ran("apt-get", "-qq", *options, "update")
    return options


def _download(folder: Path, names: tuple[str, ...], apt: tuple[str, ...]) -> list[Path]:
    folder.mkdir()
    ran("apt-get", "-qq", *apt, "download", *names, cwd=folder)
    return sorted(folder.glob("*.deb"))


def _unpack(debs: list[Path], root: Path) -> None:
    root.mkdir()
    for deb in debs:
        ran("dpkg-deb", "-x", deb, root)
