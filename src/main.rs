//! Entry point: everything happens in [`mayfly::cli`].

fn main() -> std::process::ExitCode {
    mayfly::cli::main()
}
