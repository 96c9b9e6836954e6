"""Is the machine as it was? What Docker could leave behind, looked at before and after."""

import contextlib
import os
import tempfile
import time
from dataclasses import dataclass, fields
from pathlib import Path

from tests.compose.daemon import CGROUP


@dataclass(frozen=True)
class Host:
    """Everything that a Docker daemon changes on a machine, as far as it can be read without tools."""

    interfaces: frozenset[str]
    forwarding: str
    firewall_tables: frozenset[str]
    mounts: frozenset[str]
    daemons: frozenset[str]
    folders: frozenset[str]
    cgroups: frozenset[str]

    def changes(self, after: "Host") -> list[str]:
        """What is there now and was not, one line each; what others took away meanwhile is no matter."""
        found = []
        for name in (field.name for field in fields(self)):
            was, is_now = getattr(self, name), getattr(after, name)
            if isinstance(was, frozenset):
                found += [f"{name}: {entry}" for entry in sorted(is_now - was)]
            elif was != is_now:
                found.append(f"{name}: {is_now}, was {was}")
        return found


def look() -> Host:
    """The machine now."""
    return Host(
        interfaces=frozenset(entry.name for entry in Path("/sys/class/net").iterdir()),
        forwarding=Path("/proc/sys/net/ipv4/ip_forward").read_text().strip(),
        firewall_tables=frozenset(
            line for name in ("ip_tables_names", "ip6_tables_names") for line in _lines(Path("/proc/net", name))
        ),
        mounts=frozenset(line.split()[1] for line in _lines(Path("/proc/self/mounts"))),
        daemons=frozenset(_daemons()),
        folders=frozenset([*(name for name in _FOLDERS if _is_there(Path(name))), *_ours()]),
        cgroups=frozenset(str(path) for path in _cgroups()),
    )


def as_before(before: Host, within_s: float = 10.0) -> list[str]:
    """What changed for good: the kernel takes a moment to clear what a process leaves."""
    end_s = time.monotonic() + within_s
    while (changed := before.changes(look())) and time.monotonic() < end_s:
        time.sleep(0.2)
    return changed


def remove_cgroups() -> None:
    """The groups that the daemon made for its containers: empty by now, but it leaves them."""
    for top in _cgroups():
        for folder, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):
                Path(folder).rmdir()


_FOLDERS = ("/etc/docker", "/opt/containerd", "/opt/cni", "/run/docker", "/run/docker.sock", "/run/containerd")
_FOLDERS += ("/var/lib/docker", "/var/lib/containerd", "/root/.docker")


def _cgroups() -> list[Path]:
    root = Path("/sys/fs/cgroup")
    return sorted([*root.glob(CGROUP), *root.glob(f"*/{CGROUP}")])


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:  # a folder of root's, which we could not have changed
        return False


def _ours() -> list[str]:
    return [str(path) for top in (tempfile.gettempdir(), "/dev/shm") for path in Path(top).glob("agentserve-compose-*")]


def _daemons() -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            name = path.read_text().strip()
            if name in ("dockerd", "docker-proxy") or name.startswith("containerd"):
                found.append(f"{name} {path.parent.name}")
    return found


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:  # a kernel without that table
        return []
