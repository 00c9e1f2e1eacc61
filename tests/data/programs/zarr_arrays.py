"""An array of many files is made through one mount, changed through the other and read through both."""

import os

import numpy
import zarr
from zarr.storage import ZipStore

here, there = os.environ["HERE"], os.environ["THERE"]
data = numpy.random.default_rng(1).random((300, 200))


def appears(name):
    """A name that came through another mount may be seen late, by `fuse.attr-ttl`, and zarr takes a chunk without a file for zeros."""
    while not os.path.exists(os.path.join(here, name)):
        pass


made = zarr.open_group(here + "/z", mode="w").create_array("a", shape=data.shape, chunks=(100, 100), dtype=data.dtype)
made[...] = data
made.attrs["made"] = "here"

other = zarr.open_group(there + "/z", mode="r+")["a"]
assert (other[...] == data).all() and other.attrs["made"] == "here"
other.append(data[:50] + 1)
other[0, 0] = 5
appears("z/a/c/3/0")
appears("z/a/c/3/1")

expected = numpy.concatenate([data, data[:50] + 1])
expected[0, 0] = 5
again = zarr.open_group(here + "/z", mode="r")["a"]
assert again.shape == (350, 200) and (again[...] == expected).all()

again = zarr.open_array(here + "/z/a", mode="r+")
again.resize((100, 200))
assert not os.path.exists(here + "/z/a/c/3/0") and (again[...] == expected[:100]).all()

zarr.create_array(there + "/w", shape=(10,), chunks=(5,), dtype="i4")[...] = 3
appears("w/c/1")
zarr.create_array(here + "/w", shape=(10,), chunks=(5,), dtype="i4", overwrite=True)[...] = 4
assert (zarr.open_array(here + "/w", mode="r")[...] == 4).all()

with ZipStore(there + "/z.zip", mode="w") as store:
    zarr.create_array(store, shape=data.shape, chunks=(100, 100), dtype=data.dtype)[...] = data
appears("z.zip")
with ZipStore(here + "/z.zip", mode="r") as store:
    assert (zarr.open_array(store, mode="r")[...] == data).all()
