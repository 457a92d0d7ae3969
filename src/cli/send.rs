//! `bellwire send`: an application server at the command line.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::Output;
use crate::daemon::{Exit, Fatal};
use crate::http::HttpClient;
use crate::proto::AppId;
use crate::tls;
use crate::world;

/// What `send` is told on the command line.
#[derive(Debug, clap::Args)]
pub struct SendArgs {
    /// The recipients
    #[arg(required = true, value_name = "REGID")]
    reg_ids: Vec<String>,
    /// The app's id
    #[arg(long, value_name = "ID")]
    app: AppId,
    /// The file that holds the app's secret [default: the variable BELLWIRE_APP_SECRET]
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// The server's API
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8090")]
    url: String,
    /// Certificates that authenticate the server (PEM) [default: the system's]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The app's own data (`appData`)
    #[arg(long, value_name = "TEXT")]
    data: Option<String>,
    /// The `message` string, such as "action=ALERT&alertMessage=Hi"
    #[arg(long, value_name = "TEXT", required_unless_present = "data")]
    message: Option<String>,
    /// The request's id [default: a random one]
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
    /// Who sends it
    #[arg(long, value_name = "TEXT")]
    sender: Option<String>,
    /// Minutes for which it is kept [default: 1440]
    #[arg(long, value_name = "MINUTES")]
    expiry: Option<u32>,
    /// Deliver now or never; do not store
    #[arg(long)]
    no_reliable: bool,
}

/// Sends one notification to all recipients and prints each one's result.
pub async fn send(args: SendArgs, output: Output) -> Result<(), Fatal> {
    let secret = secret(&args)?;
    let trust = tls::client(args.ca.as_deref()).map_err(Fatal::of(Exit::Config))?;
    let url = format!("{}{}", args.url.trim_end_matches('/'), crate::server::doors::tizen::PATH);
    let headers = [("appID", args.app.as_str()), ("appSecret", secret.as_str())];
    let (status, body) = HttpClient::new(&trust)
        .post(&url, &headers, body(&args).to_string())
        .await
        .map_err(|error| Fatal::new(Exit::Unavailable, format!("{url}: {error}")))?;
    let answer: Value = serde_json::from_slice(&body).map_err(|_| {
        Fatal::new(Exit::Unavailable, format!("{url} answered with status {status} and no JSON: is it a push server?"))
    })?;
    let results = answer["results"].as_array().cloned().unwrap_or_default();
    output.print(&answer, || results.iter().map(line).collect::<Vec<_>>().join("\n"));
    match results.iter().all(|result| result["statusCode"] == 1000) && !results.is_empty() {
        true => Ok(()),
        false => Err(Fatal::new(Exit::Failure, "not every recipient was accepted")),
    }
}

fn body(args: &SendArgs) -> Value {
    let request_id = args.request_id.clone().unwrap_or_else(|| world::message_id().to_string());
    let mut message = json!({ "regID": args.reg_ids, "requestID": request_id });
    let mut set = |name: &str, value: Value| {
        if !value.is_null() {
            message[name] = value;
        }
    };
    set("message", json!(args.message));
    set("appData", json!(args.data));
    set("sender", json!(args.sender));
    set("expiryDate", json!(args.expiry));
    set("reliableOption", if args.no_reliable { json!("NoReliable") } else { Value::Null });
    json!({ "messages": [message] })
}

fn secret(args: &SendArgs) -> Result<String, Fatal> {
    match &args.secret_file {
        Some(file) => std::fs::read_to_string(file)
            .map(|text| text.trim().to_owned())
            .map_err(|error| Fatal::new(Exit::IoErr, format!("{}: {error}", file.display()))),
        None => std::env::var("BELLWIRE_APP_SECRET").map_err(|_| {
            Fatal::new(Exit::Usage, "give the app's secret with --secret-file or in the variable BELLWIRE_APP_SECRET")
        }),
    }
}

fn line(result: &Value) -> String {
    let text = |name: &str| result[name].as_str().unwrap_or_default().to_owned();
    format!("{} {}  {}", result["statusCode"], text("statusMsg"), text("regID"))
}
