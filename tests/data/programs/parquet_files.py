"""Tables are written through one mount and read through the other, also mapped, and written again the other way round."""

import os

import pyarrow
import pyarrow.dataset as dataset
import pyarrow.parquet as parquet

here, there = os.environ["HERE"], os.environ["THERE"]
ROWS = 20_000
numbers = list(range(ROWS))
table = pyarrow.table({"n": numbers, "odd": [n % 2 for n in numbers], "name": [str(n) for n in numbers]})

parquet.write_table(table, here + "/t.parquet", row_group_size=3000)
for mapped in (False, True):
    assert parquet.read_table(there + "/t.parquet", memory_map=mapped).equals(table)
    few = parquet.read_table(here + "/t.parquet", memory_map=mapped, columns=["name"], filters=[("n", "==", 5)])
    assert few["name"].to_pylist() == ["5"]
parquet.write_table(table.slice(0, 10), there + "/t.parquet")
for mapped in (False, True):
    assert parquet.read_table(here + "/t.parquet", memory_map=mapped).equals(table.slice(0, 10))

parts = {"format": "parquet", "partitioning": ["odd"]}
dataset.write_dataset(table, here + "/set", max_rows_per_file=4000, max_rows_per_group=2000, **parts)
back = dataset.dataset(there + "/set", **parts).to_table().sort_by("n")
assert back["n"].to_pylist() == numbers and back["name"].to_pylist() == table["name"].to_pylist()
dataset.write_dataset(table.slice(0, 100), here + "/set", existing_data_behavior="delete_matching", **parts)
assert dataset.dataset(here + "/set", **parts).count_rows() == 100

with parquet.ParquetWriter(there + "/groups.parquet", table.schema) as writer:
    for group in range(5):
        writer.write_table(table.slice(group * 100, 100))
assert parquet.read_metadata(there + "/groups.parquet").num_row_groups == 5

with pyarrow.OSFile(here + "/t.arrow", "wb") as file, pyarrow.ipc.new_file(file, table.schema) as writer:
    writer.write_table(table)
assert pyarrow.ipc.open_file(pyarrow.memory_map(there + "/t.arrow")).read_all().equals(table)
