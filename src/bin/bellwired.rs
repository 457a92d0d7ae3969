//! The daemon of a device.
fn main() -> std::process::ExitCode {
    bellwire::agent_main()
}
