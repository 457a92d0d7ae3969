//! `org.unifiedpush.Distributor1` and `Distributor2`: what apps that speak UnifiedPush call.
//! `dbus/org.unifiedpush.Distributor1.xml` and `...2.xml` are the contracts.
//!
//! An app that does not keep to the specification is answered that it failed, or with the bus's own
//! error where an argument is missing. What an app is told later comes after its answer.

use std::collections::HashMap;
use std::sync::Arc;

use zbus::message::Header;
use zbus::names::OwnedUniqueName;
use zbus::object_server::ResponseDispatchNotifier;
use zbus::{Connection, OwnedVariant, Variant, fdo, interface};

use super::registrations::{Afterwards, Reason, Registrar, Request};
use crate::agent::bus::caller;
use crate::agent::store::channels::Version;

const SUCCEEDED: &str = "REGISTRATION_SUCCEEDED";
const FAILED: &str = "REGISTRATION_FAILED";

type Dictionary = HashMap<&'static str, Variant<'static>>;

/// The object of the older interface.
pub struct Distributor1(pub Arc<Registrar>);

/// The object of the current one.
pub struct Distributor2(pub Arc<Registrar>);

#[interface(name = "org.unifiedpush.Distributor1", introspection_docs = false)]
impl Distributor1 {
    #[zbus(out_args("registration_result", "registration_result_reason"))]
    async fn register(
        &self,
        service_name: &str,
        token: &str,
        description: &str,
        #[zbus(connection)] bus: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> fdo::Result<(String, ResponseDispatchNotifier<String>)> {
        let request = Request { service: service_name, token, description, vapid: None, version: Version::V1 };
        let registered = self.0.register(bus, &sender(&header)?, request).await;
        let (result, reason) = match &registered {
            Ok(_) => (SUCCEEDED, String::new()),
            Err(reason) => (FAILED, reason.to_string()),
        };
        // A notifier around both would be introspected as one structure.
        Ok((result.to_owned(), answer(&self.0, reason, registered)))
    }

    async fn unregister(
        &self,
        token: &str,
        #[zbus(connection)] bus: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> fdo::Result<()> {
        let afterwards = self.0.unregister(bus, &sender(&header)?, token).await;
        // Apps of this version wait for no answer, and a notifier around nothing would be introspected as
        // an argument without a type.
        let registrar = Arc::clone(&self.0);
        tokio::spawn(async move { registrar.finish(afterwards).await });
        Ok(())
    }
}

#[interface(name = "org.unifiedpush.Distributor2", introspection_docs = false)]
impl Distributor2 {
    #[zbus(out_args("res"))]
    async fn register(
        &self,
        args: HashMap<String, OwnedVariant>,
        #[zbus(connection)] bus: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> fdo::Result<ResponseDispatchNotifier<Dictionary>> {
        let (service, token) = (needed(&args, "service")?, needed(&args, "token")?);
        let (description, vapid) = (text(&args, "description")?.unwrap_or_default(), text(&args, "vapid")?);
        let request = Request { service, token, description, vapid, version: Version::V2 };
        let registered = self.0.register(bus, &sender(&header)?, request).await;
        let members = match &registered {
            Ok(_) => HashMap::from([("success", Variant::from(SUCCEEDED))]),
            Err(reason) => {
                HashMap::from([("success", Variant::from(FAILED)), ("reason", Variant::from(reason.to_string()))])
            }
        };
        Ok(answer(&self.0, members, registered))
    }

    #[zbus(out_args("res"))]
    async fn unregister(
        &self,
        args: HashMap<String, OwnedVariant>,
        #[zbus(connection)] bus: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> fdo::Result<ResponseDispatchNotifier<Dictionary>> {
        let afterwards = self.0.unregister(bus, &sender(&header)?, needed(&args, "token")?).await;
        Ok(answer(&self.0, HashMap::new(), Ok(afterwards)))
    }
}

/// The answer, and what follows once it is on its way.
fn answer<R>(registrar: &Arc<Registrar>, response: R, then: Result<Afterwards, Reason>) -> ResponseDispatchNotifier<R> {
    let (response, sent) = ResponseDispatchNotifier::new(response);
    if let Ok(afterwards) = then {
        let registrar = Arc::clone(registrar);
        tokio::spawn(async move {
            sent.await;
            registrar.finish(afterwards).await;
        });
    }
    response
}

fn sender(header: &Header<'_>) -> fdo::Result<OwnedUniqueName> {
    caller(header).map_err(|error| fdo::Error::AccessDenied(error.to_string()))
}

/// A text that the caller may leave out. One that is empty is left out: libraries without a word for
/// nothing send it so.
fn text<'a>(args: &'a HashMap<String, OwnedVariant>, name: &str) -> fdo::Result<Option<&'a str>> {
    let Some(value) = args.get(name) else { return Ok(None) };
    let text = <&str>::try_from(&**value).map_err(|_| fdo::Error::InvalidArgs(format!("{name} is a string")))?;
    Ok(Some(text).filter(|text| !text.is_empty()))
}

fn needed<'a>(args: &'a HashMap<String, OwnedVariant>, name: &str) -> fdo::Result<&'a str> {
    text(args, name)?.ok_or_else(|| fdo::Error::InvalidArgs(format!("{name} is missing")))
}
