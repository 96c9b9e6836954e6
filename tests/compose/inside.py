"""What must be true before a daemon of our own starts? Run as the first process of its namespaces, this makes it so.

Loopback is up where the network is new, and what the daemon writes to the machine's own folders ends in ours.
"""

import fcntl
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

_SIOCSIFFLAGS = 0x8914
_IFF_UP_RUNNING = 0x1 | 0x40


def loopback_up() -> None:
    """As `ip link set lo up`, which not every machine has."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP_RUNNING))


def shelter(folder: Path, above: Path) -> None:
    """Writes to `folder` go to `above` from now on, for the processes in this mount namespace."""
    upper, work = above / "upper", above / "work"
    for path in (upper, work):
        path.mkdir(parents=True, exist_ok=True)
    options = f"lowerdir={folder},upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(folder)], check=True)


if __name__ == "__main__":
    shelters = Path(sys.argv[1])
    for name in ("etc", "opt", "run"):
        shelter(Path("/", name), shelters / name)
    loopback_up()
    os.execvp(sys.argv[2], sys.argv[2:])
