//! The push server.
fn main() -> std::process::ExitCode {
    bellwire::server_main()
}
