"""Shuts itself in, then runs Python code that is not ours. A program of its own; see `run.sandbox`.

Called as `python -I sandbox_child.py LIMITS -- FILE|-m MODULE ARGUMENTS` in the folder of the code;
LIMITS is JSON. It imports nothing of Loci, which the code may not read.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import resource
import runpy
import struct
import sys

REFUSED = 97
"""Exit code when this machine cannot shut code in."""

# Numbers of system calls, by machine; what is not listed is allowed.
_CALLS = {
    "x86_64": {
        "audit": 0xC000003E,
        "clone": 56,
        "clone3": 435,
        # socket, fork, vfork, execve, execveat, kill, tkill, ptrace, process_vm_*, io_uring_setup,
        # pidfd_send_signal, mount, unshare, setns, bpf, keyctl
        "deny": (41, 57, 58, 59, 322, 62, 200, 101, 310, 311, 425, 424, 165, 272, 308, 321, 250),
    },
    "aarch64": {
        "audit": 0xC00000B7,
        "clone": 220,
        "clone3": 435,
        "deny": (198, 221, 281, 129, 130, 117, 270, 271, 425, 424, 40, 97, 268, 280, 219),
    },
}
_CLONE_THREAD = 0x10000
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_READ, _WRITE = 0b1100 | 0x1, 0x1FFF  # landlock: read file, read dir, execute; all of version 1
_REFER, _TRUNCATE = 1 << 13, 1 << 14
_LANDLOCK = (444, 445, 446)


def shut_in(limits: dict[str, object]) -> None:
    """Give up files outside the folder, the network, other programs and more than the limits."""
    for name, value in (
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_CPU, limits["cpu_s"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(name, (int(str(value)), int(str(value))))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) != 0:  # no new privileges
        refuse("no_new_privs")
    readable = limits["readable"]
    assert isinstance(readable, list)
    _landlock(libc, [str(path) for path in readable])
    _seccomp(libc)


def _landlock(libc: ctypes.CDLL, readable: list[str]) -> None:
    version = libc.syscall(_LANDLOCK[0], None, ctypes.c_size_t(0), 1)
    if version < 1:
        refuse("landlock")
    handled = _WRITE | (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)
    rules = ctypes.create_string_buffer(struct.pack("<Q", handled), 8)
    ruleset = libc.syscall(_LANDLOCK[0], rules, ctypes.c_size_t(8), 0)
    if ruleset < 0:
        refuse("landlock")
    for path, allowed in [*((p, _READ) for p in readable), (os.getcwd(), handled)]:
        if not os.path.exists(path):
            continue
        if not os.path.isdir(path):
            allowed &= ~0x8 & (0x7 | _TRUNCATE)  # a file is not listed
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = ctypes.create_string_buffer(struct.pack("<Qi", allowed, opened), 12)
        if libc.syscall(_LANDLOCK[1], ruleset, 1, rule, 0) != 0:
            refuse("landlock")
        os.close(opened)
    if libc.syscall(_LANDLOCK[2], ruleset, 0) != 0:
        refuse("landlock")
    os.close(ruleset)


def _seccomp(libc: ctypes.CDLL) -> None:
    calls = _CALLS.get(platform.machine())
    if calls is None:
        refuse(f"seccomp on {platform.machine()}")
        return
    deny = calls["deny"]
    assert isinstance(deny, tuple)
    denied = _ERRNO | errno.EPERM
    load, equal, above, set_, give = 0x20, 0x15, 0x35, 0x45, 0x06
    code = [
        (load, 0, 0, 4),  # the architecture
        (equal, 1, 0, calls["audit"]),
        (give, 0, 0, _KILL),
        (load, 0, 0, 0),  # the number of the call
        (above, 0, 1, 0x40000000),  # the x32 calls of x86-64
        (give, 0, 0, _KILL),
        (equal, 0, 1, calls["clone3"]),
        (give, 0, 0, _ERRNO | errno.ENOSYS),  # its flags stand in memory; callers try clone then
        (equal, 0, 4, calls["clone"]),
        (load, 0, 0, 16),  # its flags
        (set_, 1, 0, _CLONE_THREAD),
        (give, 0, 0, denied),
        (give, 0, 0, _ALLOW),
    ]
    for number in deny:
        code += [(equal, 0, 1, number), (give, 0, 0, denied)]
    code.append((give, 0, 0, _ALLOW))
    packed = b"".join(struct.pack("<HBBI", *line) for line in code)
    program = ctypes.create_string_buffer(packed, len(packed))
    header = struct.pack("<HxxxxxxQ", len(code), ctypes.addressof(program))
    filter_ = ctypes.create_string_buffer(header, 16)
    if libc.prctl(22, 2, filter_, 0, 0) != 0:
        refuse("seccomp")


def refuse(what: str) -> None:
    """End, because code could not be shut in."""
    sys.stderr.write(f"no {what}\n")
    sys.stderr.flush()
    os._exit(REFUSED)


def main() -> None:
    """Shut in and run."""
    limits, command = json.loads(sys.argv[1]), sys.argv[3:]
    shut_in(limits)
    sys.path.insert(0, os.getcwd())
    if command[0] == "-m":
        sys.argv = command[1:]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = command
        runpy.run_path(command[0], run_name="__main__")


if __name__ == "__main__":
    main()
