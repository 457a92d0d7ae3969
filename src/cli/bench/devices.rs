//! devices
use crate::daemon::Fatal;
/// args
#[derive(Debug, clap::Args)]
pub struct DevicesArgs {}
/// run
pub async fn run(_args: DevicesArgs) -> Result<(), Fatal> {
    Ok(())
}
