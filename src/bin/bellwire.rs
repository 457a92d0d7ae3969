//! The tool.
fn main() -> std::process::ExitCode {
    bellwire::tool_main()
}
