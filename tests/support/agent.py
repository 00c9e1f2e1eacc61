"""Does to files what it is told, one JSON line after another: a client in a process of its own, whose files no other inherits."""

import base64
import fcntl
import json
import os
import stat
import sys

held = {}
KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "link"}


def about(found):
    kind = KINDS.get(stat.S_IFMT(found.st_mode), "other")
    return {"kind": kind, "mode": stat.S_IMODE(found.st_mode), "size": found.st_size, "inode": found.st_ino}


def read_all(fd):
    parts, at = [], 0
    while part := os.pread(fd, 1 << 20, at):
        parts.append(part)
        at += len(part)
    return base64.b64encode(b"".join(parts)).decode()


def write_all(fd, data, at):
    while data:
        done = os.pwrite(fd, data, at)
        data, at = data[done:], at + done


def get(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        return read_all(fd)
    finally:
        os.close(fd)


def put(path, pieces):
    """Writes a whole file. What its errors are told with: how far it came, and the inode once it is known."""
    so_far = {"at": "open"}
    fd = None
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        so_far = {"at": "write", "inode": os.fstat(fd).st_ino}
        end = 0
        for piece in map(base64.b64decode, pieces):
            write_all(fd, piece, end)
            end += len(piece)
        so_far["at"] = "close"
    except OSError as error:
        error.so_far = so_far
        if fd is not None:
            os.close(fd)
        raise
    try:
        os.close(fd)
    except OSError as error:
        error.so_far = so_far
        raise
    return so_far


def tree(path, below=""):
    found = {}
    for name in sorted(os.listdir(path)):
        at, shown = os.path.join(path, name), f"{below}/{name}"
        one = about(os.lstat(at))
        if one["kind"] == "dir":
            found.update(tree(at, shown))
        elif one["kind"] == "link":
            one["content"] = base64.b64encode(os.readlink(at).encode()).decode()
        else:
            one["content"] = get(at)
        found[shown] = one
    return found


def open_held(slot, path, flags, mode):
    held[slot] = os.open(path, flags, mode)


def sync_directory(path):
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def close_all():
    for slot in list(held):
        try:
            os.close(held.pop(slot))
        except OSError:
            pass


VERBS = {
    "get": get,
    "put": put,
    "tree": tree,
    "open": open_held,
    "close": lambda slot: os.close(held.pop(slot)),
    "close_all": close_all,
    "close_copy": lambda slot: os.close(os.dup(held[slot])),
    "mknod": os.mknod,
    "write": lambda slot, at, data: write_all(held[slot], base64.b64decode(data), at),
    "read": lambda slot: read_all(held[slot]),
    "fd": lambda slot: held[slot],
    "fstat": lambda slot: about(os.fstat(held[slot])),
    "fsync": lambda slot: os.fsync(held[slot]),
    "fsyncdir": sync_directory,
    "flock": lambda slot: fcntl.flock(held[slot], fcntl.LOCK_EX),
    "ftruncate": lambda slot, length: os.ftruncate(held[slot], length),
    "truncate": os.truncate,
    "stat": lambda path: about(os.lstat(path)),
    "mkdir": os.mkdir,
    "rmdir": os.rmdir,
    "unlink": os.unlink,
    "rename": os.rename,
    "symlink": os.symlink,
    "readlink": os.readlink,
    "chmod": os.chmod,
    "list": lambda path: sorted(os.listdir(path)),
}

os.umask(0)
for line in sys.stdin:
    verb, *arguments = json.loads(line)
    try:
        answer = {"done": VERBS[verb](*arguments)}
    except OSError as error:
        answer = {"errno": error.errno, **getattr(error, "so_far", {})}
    print(json.dumps(answer), flush=True)
