//! `jindoctl`: the cluster, for people.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    jindofs::cli::run()
}
