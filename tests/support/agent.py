"""Does to files what it is told, one JSON line after another: a client in a process of its own, whose files no other inherits."""

import base64
import ctypes
import fcntl
import json
import mmap
import os
import stat
import sys

held = {}
maps = {}
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


# `mmap.mmap` duplicates its descriptor, and the close of a duplicate stores the file and ends record locks.
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.msync.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
MAP_FAILED = ctypes.c_void_p(-1).value
MS_SYNC = 4


def map_shared(fd, length, protection):
    at = libc.mmap(None, length, protection, mmap.MAP_SHARED, fd, 0)
    if at == MAP_FAILED:
        raise OSError(ctypes.get_errno(), "mmap")
    return (ctypes.c_char * length).from_address(at)


def pages_of(mapping):
    return memoryview(mapping).cast("B")


def unmap(slot):
    mapping = maps.pop(slot, None)
    if mapping is not None:
        libc.munmap(ctypes.addressof(mapping), len(mapping))


def map_to_read(slot):
    maps[slot] = map_shared(held[slot], os.fstat(held[slot]).st_size, mmap.PROT_READ)
    return len(maps[slot])


def read_map(slot):
    """What a mapping shows, up to the end of the file. The kernel copies it: a page that it cannot get is an error of that
    call, where an access from here would be SIGBUS."""
    mapping = maps[slot]
    length = min(len(mapping), os.fstat(held[slot]).st_size)
    copy = os.memfd_create("copy")
    try:
        write_all(copy, pages_of(mapping)[:length], 0)
        return read_all(copy)
    finally:
        os.close(copy)


def write_map(slot, at, data):
    """Changes a file through a mapping and syncs that; how many bytes lay within the file."""
    data = base64.b64decode(data)
    size = os.fstat(held[slot]).st_size
    count = max(min(len(data), size - at), 0)
    if count == 0:
        return 0
    mapping = map_shared(held[slot], size, mmap.PROT_READ | mmap.PROT_WRITE)
    source = os.memfd_create("source")
    try:
        write_all(source, data[:count], 0)
        done = 0
        while done < count:
            done += os.preadv(source, [pages_of(mapping)[at + done : at + count]], done)
        if libc.msync(ctypes.addressof(mapping), size, MS_SYNC) != 0:
            raise OSError(ctypes.get_errno(), "msync")
        return count
    finally:
        os.close(source)
        libc.munmap(ctypes.addressof(mapping), size)


def change_map(slot, at, data):
    """Changes a file through a mapping that stays, and leaves it to the kernel when to write that."""
    data = base64.b64decode(data)
    maps[slot] = map_shared(held[slot], os.fstat(held[slot]).st_size, mmap.PROT_READ | mmap.PROT_WRITE)
    pages_of(maps[slot])[at : at + len(data)] = data


MODES = {"shared": fcntl.LOCK_SH, "exclusive": fcntl.LOCK_EX, "none": fcntl.LOCK_UN}


def lock(slot, kind, mode, start, length):
    """Takes or gives up a lock without waiting."""
    operation = MODES[mode] | (fcntl.LOCK_NB if mode != "none" else 0)
    if kind == "flock":
        fcntl.flock(held[slot], operation)
    else:
        fcntl.lockf(held[slot], operation, length, start)


def close(slot):
    unmap(slot)
    os.close(held.pop(slot))


def sync_directory(path):
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def close_all():
    for slot in list(held):
        try:
            close(slot)
        except OSError:
            pass


VERBS = {
    "get": get,
    "put": put,
    "tree": tree,
    "open": open_held,
    "close": close,
    "close_all": close_all,
    "close_copy": lambda slot: os.close(os.dup(held[slot])),
    "mknod": os.mknod,
    "write": lambda slot, at, data: write_all(held[slot], base64.b64decode(data), at),
    "read": lambda slot: read_all(held[slot]),
    "fd": lambda slot: held[slot],
    "fstat": lambda slot: about(os.fstat(held[slot])),
    "fsync": lambda slot: os.fsync(held[slot]),
    "fsyncdir": sync_directory,
    "map": map_to_read,
    "read_map": read_map,
    "unmap": unmap,
    "write_map": write_map,
    "change_map": change_map,
    "lock": lock,
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
