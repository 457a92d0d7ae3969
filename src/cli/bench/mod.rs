//! bench
pub mod devices;
use super::Output;
use crate::daemon::Fatal;
/// args
#[derive(Debug, clap::Args)]
pub struct BenchArgs {}
/// run
pub async fn bench(_args: BenchArgs, _output: Output) -> Result<(), Fatal> {
    Ok(())
}
