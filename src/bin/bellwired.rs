fn main() -> std::process::ExitCode {
    bellwire::agent_main()
}
