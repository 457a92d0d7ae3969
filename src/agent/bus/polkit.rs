//! Asks polkit whether somebody who is neither root nor the daemon's user may manage: the action
//! `org.bellwire.manage`. Where there is no polkit on the bus, nobody else may.

use std::collections::HashMap;
use std::time::Duration;

use tracing::debug;
use zbus::names::UniqueName;
use zbus::{Connection, Variant, proxy};

/// The action, as `dbus/org.bellwire.policy` describes it.
const ACTION: &str = "org.bellwire.manage";
/// polkit may ask the user.
const ALLOW_USER_INTERACTION: u32 = 1;
/// How long the user may take to answer.
const ANSWER: Duration = Duration::from_secs(120);

/// polkit's authority.
#[proxy(
    interface = "org.freedesktop.PolicyKit1.Authority",
    default_service = "org.freedesktop.PolicyKit1",
    default_path = "/org/freedesktop/PolicyKit1/Authority"
)]
trait Authority {
    #[allow(clippy::type_complexity)]
    fn check_authorization(
        &self,
        subject: &(&str, HashMap<&str, Variant<'_>>),
        action: &str,
        details: HashMap<&str, &str>,
        flags: u32,
        cancellation: &str,
    ) -> zbus::Result<(bool, bool, HashMap<String, String>)>;
}

/// Whether whoever has this name may manage. `ask`: somebody may be asked for a password.
pub async fn allows(bus: &Connection, name: &UniqueName<'_>, ask: bool) -> bool {
    let asked = async {
        let subject = ("system-bus-name", HashMap::from([("name", Variant::from(name.as_str()))]));
        let authority = AuthorityProxy::new(bus).await?;
        let flags = if ask { ALLOW_USER_INTERACTION } else { 0 };
        authority.check_authorization(&subject, ACTION, HashMap::new(), flags, "").await
    };
    match tokio::time::timeout(ANSWER, asked).await {
        Ok(Ok((authorized, _, _))) => authorized,
        Err(_) => false,
        Ok(Err(error)) => {
            debug!("polkit was not asked: {error}");
            false
        }
    }
}
