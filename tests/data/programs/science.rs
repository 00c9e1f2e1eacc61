//! h5py, zarr and parquet: files that are locked, changed in the middle and mapped, and directories of chunks.

use super::{Job, can_run_long, everywhere, install, left_out, off, run};

const ENVIRONMENT: &str = "science-1";
const PACKAGES: [&str; 3] = ["h5py>=3", "zarr>=3", "pyarrow>=15"];

/// Runs a script of Python on each storage, on one mount and on two.
async fn run_everywhere(test: &'static str, name: &'static str, script: &'static str) {
    if !can_run_long(test, &[]) {
        return;
    }
    let python = off(|| install::python_with(ENVIRONMENT, &PACKAGES)).await;
    if !left_out(test, python.as_ref().err().map(String::as_str)) {
        return;
    }
    let python = python.expect("it is installed");
    run(everywhere(|storage, mounts| Job::python(&python, name, storage, mounts, script))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_hdf5_file_is_changed_through_two_mounts_and_locked_while_it_is_open() {
    let test = "an_hdf5_file_is_changed_through_two_mounts_and_locked_while_it_is_open";
    run_everywhere(test, "h5py", include_str!("h5py_files.py")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zarr_array_is_appended_to_resized_and_overwritten_through_two_mounts() {
    let test = "a_zarr_array_is_appended_to_resized_and_overwritten_through_two_mounts";
    run_everywhere(test, "zarr", include_str!("zarr_arrays.py")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn parquet_tables_are_read_mapped_and_replaced_through_two_mounts() {
    let test = "parquet_tables_are_read_mapped_and_replaced_through_two_mounts";
    run_everywhere(test, "parquet", include_str!("parquet_files.py")).await;
}
