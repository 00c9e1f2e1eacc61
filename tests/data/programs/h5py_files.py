"""An HDF5 file is made through one mount, changed through the other and read through both. HDF5 locks it meanwhile."""

import os
import subprocess
import sys
import time

import h5py
import numpy

here, there = (os.environ[name] + "/f.h5" for name in ("HERE", "THERE"))
data = numpy.random.default_rng(1).integers(0, 1 << 30, (400, 500))


def opened(path, mode):
    """Through another mount a lock is free some milliseconds after the close that gives it up."""
    deadline = time.monotonic() + (0 if here == there else 10)
    while True:
        try:
            return h5py.File(path, mode)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise


for _ in range(2):
    with opened(here, "w") as file:
        file["plain"] = data
        file.create_dataset("packed", data=data, chunks=(50, 50), compression="gzip", maxshape=(None, 500))
        file["group/other"] = numpy.arange(10)
        file.attrs["made"] = "here"
    with opened(there, "a") as file:
        assert (file["plain"][...] == data).all() and file.attrs["made"] == "here"
        file["packed"].resize(500, axis=0)
        file["packed"][400:] = data[:100] * 2
        file["plain"][7, 7:9] = 42
        del file["group/other"]
    expected = data.copy()
    expected[7, 7:9] = 42
    with opened(here, "r") as file, opened(there, "r") as same:
        for one in (file, same):
            assert (one["plain"][...] == expected).all() and "other" not in one["group"]
            assert one["packed"].shape == (500, 500)
            assert (one["packed"][:400] == data).all() and (one["packed"][400:] == data[:100] * 2).all()

with opened(here, "a"):
    for path in (here, there):
        program = "import h5py, sys; h5py.File(sys.argv[1], 'a')"
        tried = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True)
        assert tried.returncode == 1 and "unable to lock file, errno = 11" in tried.stderr, tried.stderr

# Every close of one mount has given the lock up when it returns.
for number in range(30):
    with h5py.File(there, "a") if number else opened(there, "a") as file:
        file.attrs["number"] = number
with opened(here, "r") as file:
    assert file.attrs["number"] == 29
