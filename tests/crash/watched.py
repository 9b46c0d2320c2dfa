"""A child process that is stopped at every change it makes to the files below a folder.

The kernel does the stopping: a seccomp filter reports each system call that writes, creates, renames, removes or
syncs, and the call waits until the parent lets it happen, refuses it with an error, or kills the process. So the
points are found, not listed, and it does not matter who writes: Python, pyarrow, safetensors, SQLite, DuckDB, faiss.
Only writes to mapped memory go unseen (``pixels.npy``, SQLite's ``-shm``); it is the rename that makes them count.

Needs Linux on x86-64; Docker's default profile forbids it.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import fcntl
import functools
import os
import platform
import select
import signal
import socket
import struct
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CALLS = {  # numbers of x86-64
    "write": 1, "pwrite64": 18, "writev": 20, "pwritev": 296, "sendfile": 40, "copy_file_range": 326,
    "fallocate": 285, "ftruncate": 77, "truncate": 76, "fsync": 74, "fdatasync": 75, "open": 2, "openat": 257,
    "rename": 82, "renameat": 264, "renameat2": 316, "unlink": 87, "unlinkat": 263, "mkdir": 83, "mkdirat": 258,
    "rmdir": 84, "link": 86, "linkat": 265, "symlink": 88, "symlinkat": 266,
}  # fmt: skip
NAMES = {number: name for name, number in CALLS.items()}
BY_HANDLE = {"write": 0, "pwrite64": 0, "writev": 0, "pwritev": 0, "sendfile": 0, "copy_file_range": 2,
             "fallocate": 0, "ftruncate": 0, "fsync": 0, "fdatasync": 0}  # fmt: skip
# Which arguments name the changed path: (folder handle or None, path).
BY_PATH = {
    "truncate": (None, 0), "open": (None, 0), "openat": (0, 1), "rename": (None, 1), "renameat": (2, 3),
    "renameat2": (2, 3), "unlink": (None, 0), "unlinkat": (0, 1), "mkdir": (None, 0), "mkdirat": (0, 1),
    "rmdir": (None, 0), "link": (None, 1), "linkat": (2, 3), "symlink": (None, 1), "symlinkat": (1, 2),
}  # fmt: skip
WRITES = ("write", "pwrite64", "writev", "pwritev")
SYNCS = ("fsync", "fdatasync")
TAKES_SPACE = (*WRITES, *SYNCS, "sendfile", "copy_file_range", "fallocate", "open", "openat", "mkdir", "mkdirat",
               "symlink", "symlinkat", "link", "linkat")  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

SECCOMP, PIDFD_GETFD = 317, 438
NO_NEW_PRIVS, SET_FILTER, NEW_LISTENER = 38, 1, 8
RECEIVE, SEND = 0xC0502100, 0xC0182101
ALLOW, NOTIFY = 0x7FFF0000, 0x7FC00000
CONTINUE = 1
LIBC = ctypes.CDLL(None, use_errno=True)

GO, KILL, TEAR = "go", "kill", "tear"
Verdict = str | int  # GO, KILL, TEAR (half of a write, if it is one, then KILL), or an error number


@dataclass(frozen=True)
class Operation:
    """One change to a file.

    Attributes:
        number: its place among the changes below the folder, from 1.
        call: the system call.
        path: what is changed, relative to the folder.
        size: bytes, of a write.
    """

    number: int
    call: str
    path: str
    size: int


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        killed: whether it was killed.
        error: the traceback that it ended with; empty if it finished.
        operations: what it did or tried to do, in order.
    """

    killed: bool
    error: str
    operations: list[Operation]


@functools.cache
def possible() -> bool:
    """Whether this machine lets a process watch its child in this way."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return False
    seen: list[Operation] = []

    def decide(operation: Operation) -> Verdict:
        seen.append(operation)
        return GO

    with tempfile.TemporaryDirectory() as folder:
        try:
            ended = run(lambda: (Path(folder) / "file").write_text("text"), Path(folder), decide)
        except OSError:
            return False
    return not ended.error and bool(seen)


def run(work: Callable[[], object], below: Path, decide: Callable[[Operation], Verdict]) -> Ended:
    """Run ``work`` in a fork of this process, and decide about each change it makes below a folder.

    Args:
        work: what to do; an exception ends the child and is reported.
        below: the folder.
        decide: is asked before each change.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    ours, theirs = socket.socketpair()
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        ours.close()
        os.close(reader)
        _child(work, theirs, writer)
    theirs.close()
    os.close(writer)
    try:
        return _parent(pid, ours, reader, below, decide)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        ours.close()
        os.close(reader)


def _child(work: Callable[[], object], parent: socket.socket, said: int) -> None:
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # progress and warnings of thousands of children
        listener = _listener()
        socket.send_fds(parent, [b"."], [listener])
        os.close(listener)
        work()
        code = 0
    except BaseException:
        with contextlib.suppress(OSError):
            os.write(said, traceback.format_exc().encode()[-60_000:])
        code = 1
    os._exit(code)


def _listener() -> int:
    """Install the filter in this process; the handle that the notifications are read from."""
    program = b""
    for call, number in CALLS.items():
        flags = {"open": 1, "openat": 2}.get(call)
        if flags is None:
            program += struct.pack("HBBI", 0x15, 0, 1, number)  # the call is another one: skip the next line
        else:
            program += struct.pack("HBBI", 0x15, 0, 4, number)
            program += struct.pack("HBBI", 0x20, 0, 0, 16 + 8 * flags)  # load its flags
            program += struct.pack("HBBI", 0x45, 1, 0, WRITING)
            program += struct.pack("HBBI", 0x06, 0, 0, ALLOW)
        program += struct.pack("HBBI", 0x06, 0, 0, NOTIFY)
    program = struct.pack("HBBI", 0x20, 0, 0, 0) + program + struct.pack("HBBI", 0x06, 0, 0, ALLOW)
    kept = ctypes.create_string_buffer(program, len(program))
    filters = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(kept))
    if LIBC.prctl(NO_NEW_PRIVS, 1, 0, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), "prctl")
    listener: int = LIBC.syscall(SECCOMP, SET_FILTER, NEW_LISTENER, filters)
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return listener


def _parent(
    pid: int, child: socket.socket, said: int, below: Path, decide: Callable[[Operation], Verdict]
) -> Ended:
    done: list[Operation] = []
    killed = False
    _, handles, _, _ = socket.recv_fds(child, 1, 1)
    if handles:
        (listener,) = handles
        calls = select.poll()
        calls.register(listener, select.POLLIN)
        while not killed:
            (ready,) = calls.poll() or [(0, 0)]
            if ready[1] & (select.POLLHUP | select.POLLERR):
                break
            killed = _one(pid, listener, os.path.realpath(below), decide, done)
        os.close(listener)
    error = b"".join(iter(lambda: os.read(said, 1 << 16), b"")).decode()
    _, status = os.waitpid(pid, 0)
    died = os.WIFSIGNALED(status) and not killed
    return Ended(killed, f"ended by signal {os.WTERMSIG(status)}" if died else error, done)


def _one(
    pid: int, listener: int, below: str, decide: Callable[[Operation], Verdict], done: list[Operation]
) -> bool:
    """Answer one system call; whether the process was killed."""
    asked = bytearray(80)
    try:
        fcntl.ioctl(listener, RECEIVE, asked)
    except OSError:  # the process has gone in the meantime
        return False
    name, thread, _, call, _, _, *arguments = struct.unpack("=QIIiIQ6Q", asked)
    verdict: Verdict = GO
    try:
        path = _path(thread, NAMES[call], arguments)
    except OSError:  # bad arguments: the kernel will say so
        path = ""
    if path.startswith(below + "/"):
        size = _size(thread, NAMES[call], arguments)
        operation = Operation(len(done) + 1, NAMES[call], path[len(below) + 1 :], size)
        done.append(operation)
        verdict = decide(operation)
    if verdict == TEAR and NAMES[call] in WRITES:
        _half(pid, thread, NAMES[call], arguments)
    if verdict in (TEAR, KILL):
        os.killpg(pid, signal.SIGKILL)
        return True
    error, flags = (0, CONTINUE) if verdict == GO else (-int(verdict), 0)
    with contextlib.suppress(OSError):
        fcntl.ioctl(listener, SEND, struct.pack("=QqiI", name, 0, error, flags))
    return False


def _path(thread: int, call: str, arguments: list[int]) -> str:
    if call in BY_HANDLE:
        return os.readlink(f"/proc/{thread}/fd/{arguments[BY_HANDLE[call]]}")
    folder, at = BY_PATH[call]
    path = _text(thread, arguments[at])
    if not path.startswith("/"):
        handle = -100 if folder is None else ctypes.c_int32(arguments[folder]).value
        path = os.path.join(
            os.readlink(f"/proc/{thread}/{'cwd' if handle == -100 else f'fd/{handle}'}"), path
        )
    head, tail = os.path.split(os.path.normpath(path))
    return os.path.join(os.path.realpath(head), tail)


def _size(thread: int, call: str, arguments: list[int]) -> int:
    if call in ("write", "pwrite64"):
        return arguments[2]
    return sum(size for _, size in _pieces(thread, arguments)) if call in WRITES else 0


def _pieces(thread: int, arguments: list[int]) -> list[tuple[int, int]]:
    """(address, bytes) of what a writev writes."""
    flat = array.array("Q", _memory(thread, arguments[1], 16 * arguments[2]))
    return list(zip(flat[::2], flat[1::2], strict=True))


def _half(pid: int, thread: int, call: str, arguments: list[int]) -> None:
    """Do the first half of a write in the child's stead, as a kill in the middle of one leaves it."""
    if call in ("write", "pwrite64"):
        content = _memory(thread, arguments[1], arguments[2])
    else:
        content = b"".join(_memory(thread, *piece) for piece in _pieces(thread, arguments))
    of = os.pidfd_open(pid)
    handle = LIBC.syscall(PIDFD_GETFD, of, ctypes.c_int(arguments[0]), 0)
    half = content[: (len(content) + 1) // 2]
    if call in ("pwrite64", "pwritev"):
        os.pwrite(handle, half, arguments[3])
    else:
        os.write(handle, half)
    os.close(handle)
    os.close(of)


def _text(thread: int, address: int) -> str:
    found = b""
    while b"\0" not in found:  # page by page: what follows may not be readable
        found += _memory(thread, address + len(found), 4096 - (address + len(found)) % 4096)
    return found[: found.index(b"\0")].decode(errors="surrogateescape")


def _memory(thread: int, address: int, size: int) -> bytes:
    with open(f"/proc/{thread}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        return memory.read(size)
