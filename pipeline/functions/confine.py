"""Takes away from the process of a function what it has no need of: memory, files, other processes, networks.

Where the kernel has Landlock (Linux 5.13), only the interpreter, its libraries and the functions' folder can be read, nothing can
be written, and no other process can be looked into. Elsewhere the file system is as open as to ourselves.
"""

import ctypes
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable, Iterable, Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Final

from destinations.guard import Network, permitted

_FILES: Final = 64  # descriptors

# linux/landlock.h and linux/prctl.h; the numbers of the calls are the same on every architecture that has them.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG, _BENEATH = 1, 1
_NO_NEW_PRIVILEGES, _PARENT_DEATH_SIGNAL = 38, 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_RIGHTS: Final = {1: (1 << 13) - 1, 2: (1 << 14) - 1}  # by version; from 3 on also truncate
_RIGHTS_NOW: Final = (1 << 15) - 1

_SYSTEM: Final = (
    "/usr/lib", "/usr/lib64", "/usr/share", "/usr/local/lib", "/lib", "/lib64", "/etc/ssl", "/etc/pki",
    "/etc/ca-certificates", "/etc/resolv.conf", "/etc/hosts", "/etc/host.conf", "/etc/nsswitch.conf", "/etc/gai.conf",
    "/etc/localtime", "/etc/services", "/etc/protocols", "/etc/mime.types", "/dev/urandom", "/dev/random",
)  # fmt: skip
_STARTS_PROCESSES: Final = frozenset(
    ("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pty.spawn")
)


def die_with(parent: int) -> None:
    """Ends this process as soon as its parent is gone, also in the middle of an endless loop."""
    if sys.platform == "linux":
        _libc().prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def limit(memory: int) -> None:
    """Bounds what can be had from now on: `memory` more bytes, few files, none of them written, no core dumps."""
    for what, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, _FILES),
        (resource.RLIMIT_AS, _in_use() + memory),
    ):
        hard = resource.getrlimit(what)[1]
        bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (bound, bound))


def limit_cpu(seconds: int) -> None:
    """Lets this process use so many seconds of CPU from now on: a second guard beside the parent's clock."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + seconds + 1, hard))


def keep_apart(folder: str, allow: Sequence[str] | None) -> None:
    """Only `folder` and the interpreter's files from now on, no further process, and the network as far as destinations have it;
    `allow` None: none at all."""
    _restrict_files([folder, sys.prefix, sys.base_prefix, *_SYSTEM])
    sys.addaudithook(_guard(None if allow is None else [ip_network(one) for one in allow]))


def _in_use() -> int:
    """Address space of this process in bytes; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return 0
    return pages * resource.getpagesize()


def _guard(allow: Sequence[Network] | None) -> Callable[[str, tuple[Any, ...]], None]:
    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
            address = arguments[1]
            if address is None:  # of a socket that is connected
                return
            if allow is None:
                raise PermissionError("no network in a rehearsal")
            if not _may_reach(address, allow):
                raise PermissionError("not a public address; name its network under outbound.allow")
        elif event in _STARTS_PROCESSES:
            raise PermissionError("a function cannot start processes")

    return refuse


def _may_reach(address: Any, allow: Sequence[Network]) -> bool:
    """Only numbers: a name could be looked up again behind our back."""
    try:
        return isinstance(address, tuple) and permitted(str(address[0]), allow)
    except ValueError:
        return False


# ── Landlock ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def confines_files() -> bool:
    """Whether this kernel lets a process give up files."""
    return sys.platform == "linux" and _version() >= 1


def _version() -> int:
    found: int = _libc().syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION_FLAG)
    return found


def _restrict_files(readable: Iterable[str]) -> None:
    if not confines_files():
        return
    libc = _libc()
    handled = struct.pack("=Q", _RIGHTS.get(_version(), _RIGHTS_NOW))
    rules = _checked(libc.syscall(_CREATE_RULESET, handled, ctypes.c_size_t(len(handled)), 0))
    for name in readable:
        _allow(libc, rules, name, _READ_FILE | _READ_DIR)
    _allow(libc, rules, os.devnull, _READ_FILE | _WRITE_FILE)
    _checked(libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    _checked(libc.syscall(_RESTRICT_SELF, rules, 0))
    os.close(rules)


def _allow(libc: Any, rules: int, name: str, rights: int) -> None:
    try:
        beneath = os.open(name, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # not on this system
    try:
        mine = rights if Path(name).is_dir() else rights & ~_READ_DIR
        _checked(libc.syscall(_ADD_RULE, rules, _BENEATH, struct.pack("=Qi", mine, beneath), 0))
    finally:
        os.close(beneath)


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), "landlock")
    return result
