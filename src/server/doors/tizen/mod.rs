//! The Tizen RQM door: `POST /spp/pns/api/push`.
//!
//! Authenticates the application, parses its request, sends each recipient to its region, and
//! answers in request order. `1000` means that the notification is on disk (or, for `NoReliable`,
//! that it was handed over if its device is connected). Source: the push server guide.

mod cancel;
mod code;
pub mod document;
mod request;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::{RETRY_AFTER, TRANSFER_ENCODING};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::proto::message::{Door, Payload, Reliability};
use crate::proto::urgency::Urgency;
use crate::proto::{Push, RegId};
use crate::server::Server;
use crate::server::doors::body::{Unread, read};
use crate::server::doors::sender::{Sender, Stranger};
use crate::server::metrics::Verdicts;
use crate::server::rates::TooFast;
use crate::server::regid::Opened;
use crate::server::store::{Accepted, Incoming};
use crate::server::turns::InLine;
use crate::world;

pub use code::{Code, Row, TABLE, Use};
use request::{Content, Entry, Malformed, Request};

/// The path of the door.
pub const PATH: &str = "/spp/pns/api/push";

/// Says on a refusal which member of the request was wrong; the body keeps to the API's own words.
const DETAIL: HeaderName = HeaderName::from_static("bellwire-detail");
/// Seconds after which a sender may try again what could not be done now.
const RETRY_S: u16 = 30;

/// The door's routes.
pub fn router() -> OpenApiRouter<Arc<Server>> {
    let other_method = || async { refuse(Code::Method, "this path takes POST only") };
    let (schemas, paths, handler) = routes!(push);
    OpenApiRouter::new()
        .routes((schemas, paths, handler.fallback(other_method)))
        .route("/spp/pns/api/push/", post(push).fallback(other_method))
}

/// The answer to a path that nobody serves.
pub async fn unknown_path() -> Response {
    refuse(Code::Uri, "there is nothing at this path; notifications go to /spp/pns/api/push")
}

/// One recipient's result, in the API's own words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = TizenResult)]
struct Verdict {
    /// As sent; empty if the request was refused as a whole.
    #[serde(rename = "regID")]
    reg_id: String,
    /// As sent; empty if the request was refused as a whole.
    #[serde(rename = "requestID")]
    request_id: String,
    /// 1000, or why not: bellwire-tizen(7) lists the codes.
    #[serde(rename = "statusCode")]
    #[schema(minimum = 1000, maximum = 3999)]
    status_code: u16,
    /// The code in words.
    #[serde(rename = "statusMsg")]
    status_msg: String,
}

impl Verdict {
    fn new(reg_id: &str, request_id: &str, code: Code) -> Self {
        Self {
            reg_id: reg_id.to_owned(),
            request_id: request_id.to_owned(),
            status_code: code.number(),
            status_msg: code.message().to_owned(),
        }
    }
}

#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = TizenAnswer)]
struct Answer {
    /// One for each recipient, in the order of the request.
    #[schema(min_items = 1)]
    results: Vec<Verdict>,
}

/// Send notifications
///
/// The API of the Tizen push server. A request that is understood is answered 200 with a result for
/// each recipient, whatever became of it; 1000 means that the notification is on disk.
#[utoipa::path(post, path = "/spp/pns/api/push", tag = "tizen", operation_id = "tizen_push",
    security(("appID" = [], "appSecret" = [])),
    request_body(content = document::Request, content_type = "application/json",
        description = "JSON in UTF-8 whatever its Content-Type says, at most 204800 bytes or what the operator has set"),
    responses(
        (status = 200, description = "Understood; see each result", body = Answer),
        document::Refusals,
    ))]
async fn push(State(server): State<Arc<Server>>, headers: HeaderMap, body: Body) -> Response {
    let unnamed = "the headers appID and appSecret do not name a registered application";
    let sender = match Sender::of(&server, &headers).await {
        Ok(sender) => sender,
        Err(Stranger::Unproven) => return refuse(Code::Authentication, unnamed),
        Err(Stranger::Unknown) => return refuse(Code::NotRegisteredAppId, unnamed),
        Err(Stranger::Store(_)) => return refuse(Code::Internal, "the store cannot be read"),
    };
    if headers.contains_key(TRANSFER_ENCODING) {
        return refuse(Code::Chunked, "the body comes in chunks; send it with a Content-Length");
    }
    let limits = server.config.limits;
    let body = match read(body, limits.body_bytes).await {
        Ok(body) => body,
        Err(Unread::TooLong) => {
            return refuse(Code::TooLong, &format!("the body is over the limit of {} bytes", limits.body_bytes));
        }
        Err(why @ (Unread::Broken | Unread::Late)) => return refuse(Code::Io, &why.to_string()),
    };
    let request = match request::parse(&body, limits.app_data_bytes) {
        Ok(request) => request,
        Err(Malformed { code, detail }) => return refuse(code, &detail),
    };
    // In a task of its own: a sender that hangs up must not keep what it had stored from waking the
    // device, nor leave half of a request cancelled.
    let done = tokio::spawn(async move {
        match request {
            Request::Send(entries) => deliver(&server, &sender, entries).await,
            Request::Cancel(request) => match server.rates.app(&sender.app, request.recipients.len().max(1)) {
                Ok(()) => cancel::cancel(&server, &sender, request).await,
                Err(over) => over_limit(&over),
            },
        }
    });
    done.await.unwrap_or_else(|_| refuse(Code::Internal, "the notification could not be processed"))
}

/// A place in the answer that is still to be filled.
#[derive(Clone, Copy)]
struct Place {
    /// Index of the message.
    entry: usize,
    /// Index of the recipient in it.
    recipient: usize,
    /// Index in the answer.
    answer: usize,
}

async fn deliver(server: &Arc<Server>, sender: &Sender, entries: Vec<Entry>) -> Response {
    let in_line = match server.turns.line_up(&sender.app) {
        Ok(in_line) => in_line,
        Err(over) => return over_limit(&over),
    };
    if let Err(over) = server.rates.app(&sender.app, entries.iter().map(|entry| entry.recipients.len()).sum()) {
        return over_limit(&over);
    }
    let named: usize = entries.iter().map(|entry| entry.recipients.len()).sum();
    let too_many = named > 1 && !server.config.api.multiple;
    let (mut verdicts, mut too_fast) = (Vec::new(), Vec::new());
    let (mut local, mut foreign) = (Vec::new(), BTreeMap::<_, Vec<Place>>::new());
    for (entry_number, entry) in entries.iter().enumerate() {
        for (number, recipient) in entry.recipients.iter().enumerate() {
            let place = Place { entry: entry_number, recipient: number, answer: verdicts.len() };
            let code = match (&recipient.reg_id, &entry.content) {
                (Err(code), _) | (_, Err(code)) => *code,
                (Ok(reg_id), Ok(content)) => match route(server, sender, reg_id) {
                    Route::Here(_) if too_many => Code::OneAtATime,
                    Route::Here(opened) => {
                        match server.rates.device(opened.device) {
                            Ok(()) => local.push((place, opened, *reg_id, content)),
                            Err(over) => too_fast.push(over),
                        }
                        Code::ImpossibleToEnqueue
                    }
                    Route::There => {
                        foreign.entry(reg_id.region()).or_default().push(place);
                        Code::Io
                    }
                    Route::Nowhere => Code::NotRegisteredRegId,
                },
            };
            // Whoever is not answered for below has this code: nothing is called a success by default.
            verdicts.push(Verdict::new(&recipient.shown, &entry.request_id, code));
        }
    }
    let recipients_here = local.len();
    let passed_on = foreign.into_iter().map(|(region, places)| {
        let body = forwarded_body(&entries, &places);
        async move { (places, server.regions.post(region, PATH, &sender.headers(), body).await) }
    });
    let (here, there) =
        tokio::join!(accept(server, sender, &entries, local, in_line), futures_util::future::join_all(passed_on));
    let (here, over) = here;
    too_fast.extend(over.into_iter().flat_map(|over| std::iter::repeat_n(over, recipients_here - here.len())));
    for (place, code) in here {
        verdicts[place.answer] = Verdict::new(&verdicts[place.answer].reg_id, &verdicts[place.answer].request_id, code);
    }
    for (places, answer) in there {
        merge(&mut verdicts, &places, answer.as_deref());
    }
    // All of it may be tried again when the last of the devices may.
    match too_fast.iter().max_by_key(|over| over.after) {
        Some(over) if too_fast.len() == verdicts.len() => slow_down(answer(verdicts), over),
        Some(_) | None => answer(verdicts),
    }
}

enum Route {
    Here(Opened),
    There,
    Nowhere,
}

fn route(server: &Server, sender: &Sender, reg_id: &RegId) -> Route {
    if reg_id.region() == server.config.region {
        return match server.keys().open(reg_id) {
            Some(opened) if opened.is_for(&sender.app) => Route::Here(opened),
            _ => Route::Nowhere,
        };
    }
    match server.regions.knows(reg_id.region()) && !sender.forwarded {
        true => Route::There,
        false => Route::Nowhere,
    }
}

/// A recipient of this region, and what it is sent.
type Local<'a> = (Place, Opened, RegId, &'a Content);

/// Accepts as many recipients at a time as a turn is for. Whoever has no code in the end has had no turn.
async fn accept(
    server: &Server,
    sender: &Sender,
    entries: &[Entry],
    mut local: Vec<Local<'_>>,
    in_line: InLine,
) -> (Vec<(Place, Code)>, Option<TooFast>) {
    let mut codes = Vec::new();
    while !local.is_empty() {
        let most = in_line.share(server.store.vitals().sync());
        let share = local.drain(..local.len().min(most)).collect();
        match in_line.turn().await {
            Ok(_turn) => codes.extend(accept_share(server, sender, entries, share).await),
            Err(over) => return (codes, Some(over)),
        }
    }
    (codes, None)
}

/// Stores what is to be stored, hands over what is not, and wakes the devices.
async fn accept_share(
    server: &Server,
    sender: &Sender,
    entries: &[Entry],
    share: Vec<Local<'_>>,
) -> Vec<(Place, Code)> {
    let (mut codes, mut places, mut incoming) = (Vec::new(), Vec::new(), Vec::new());
    for (place, to, reg_id, content) in share {
        let push = make_push(server, sender, reg_id, &entries[place.entry].request_id, content);
        match content.reliability {
            Reliability::Transport => {
                places.push(place);
                let release_ms =
                    (content.delay_minutes > 0).then(|| push.accepted_ms.plus_minutes(content.delay_minutes));
                incoming.push(Incoming { to, push, release_ms });
            }
            Reliability::NoReliable => codes.push((place, hand_over(server, to, push).await)),
        }
    }
    if incoming.is_empty() {
        return codes;
    }
    let devices: BTreeSet<_> = incoming.iter().map(|incoming| incoming.to.device).collect();
    match server.store.accept(incoming).await {
        Ok(fates) => codes.extend(places.into_iter().zip(fates).map(|(place, fate)| match fate {
            Accepted::Stored => (place, Code::Success),
            Accepted::NotRegistered => (place, Code::NotRegisteredRegId),
            // Only Web Push senders name what is to be taken once.
            Accepted::Repeated(_) | Accepted::TooMany | Accepted::OverQuota => (place, Code::ImpossibleToEnqueue),
        })),
        Err(_) => codes.extend(places.into_iter().map(|place| (place, Code::ImpossibleToEnqueue))),
    }
    devices.into_iter().for_each(|device| server.registry.wake(device));
    server.accepted.notify_one();
    codes
}

async fn hand_over(server: &Server, to: Opened, push: Push) -> Code {
    match server.store.is_registered(to, push.app.clone()).await {
        Ok(true) => {
            server.registry.offer(to.device, push);
            Code::Success
        }
        Ok(false) => Code::NotRegisteredRegId,
        Err(_) => Code::Internal,
    }
}

fn make_push(server: &Server, sender: &Sender, reg_id: RegId, request_id: &str, content: &Content) -> Push {
    let now = world::now();
    Push {
        id: world::message_id(),
        reg_id,
        app: sender.app.clone(),
        door: Door::Tizen,
        payload: content.app_data.clone().map(Payload::text),
        message: content.message.clone().map(Into::into),
        sender: content.sender.clone(),
        request_id: Some(request_id.to_owned()),
        session_info: content.session_info.clone(),
        kind: content.kind,
        time_stamp: content.time_stamp,
        accepted_ms: now,
        expires_ms: now
            .plus_minutes(content.delay_minutes)
            .plus_minutes(content.expiry_minutes.min(server.config.limits.expiry_minutes)),
        reliability: content.reliability,
        urgency: urgency(content),
        collapse_key: None,
        receipt: content.reliability == Reliability::Transport,
        receipts_to: None,
        background_launch: content.background_launch,
    }
}

/// What is for the user is sent at once, whatever the device's battery says; what is to start the app
/// without disturbing anybody, with best effort.
fn urgency(content: &Content) -> Urgency {
    match (&content.message, content.background_launch) {
        (Some(_), _) => Urgency::High,
        (None, true) => Urgency::Low,
        (None, false) => Urgency::Normal,
    }
}

/// The part of a request that is another region's: each message with its recipients there.
fn forwarded_body(entries: &[Entry], places: &[Place]) -> String {
    let mut messages: Vec<Value> = Vec::new();
    for group in places.chunk_by(|one, two| one.entry == two.entry) {
        let entry = &entries[group[0].entry];
        let mut message = entry.raw.clone();
        let reg_ids: Vec<&str> = group.iter().map(|place| entry.recipients[place.recipient].shown.as_str()).collect();
        message.insert("regID".into(), json!(reg_ids));
        if entry.content.as_ref().is_ok_and(|content| content.background_launch) {
            message.insert("action".into(), json!("backgroundLaunch"));
        }
        messages.push(Value::Object(message));
    }
    json!({ "messages": messages }).to_string()
}

/// Takes another region's results for its recipients. If they do not fit, the recipients keep
/// their "I/O" verdict.
fn merge(verdicts: &mut [Verdict], places: &[Place], answer: Option<&[u8]>) {
    let Some(theirs) = answer.and_then(|body| serde_json::from_slice::<Answer>(body).ok()) else { return };
    let results: Vec<&Verdict> = match theirs.results.as_slice() {
        // A refusal of the whole request is one result that names nobody.
        [refusal] if refusal.reg_id.is_empty() => vec![refusal; places.len()],
        all if all.len() == places.len() => all.iter().collect(),
        _ => return,
    };
    for (place, theirs) in places.iter().zip(results) {
        let ours = &mut verdicts[place.answer];
        ours.status_code = theirs.status_code;
        ours.status_msg.clone_from(&theirs.status_msg);
    }
}

/// Whether the same may be tried again.
fn is_passing(verdict: &Verdict) -> bool {
    [Code::Internal, Code::ImpossibleToEnqueue, Code::Io].iter().any(|code| code.number() == verdict.status_code)
}

/// 200 for a request that was understood, whatever became of its recipients; 503 when nothing of
/// it could be done now and all of it may be tried again.
fn answer(results: Vec<Verdict>) -> Response {
    let busy = results.iter().all(is_passing);
    let codes = results.iter().map(|verdict| verdict.status_code).collect();
    let body = Json(Answer { results });
    let mut response = match busy {
        true => (StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, HeaderValue::from(RETRY_S))], body).into_response(),
        false => body.into_response(),
    };
    response.extensions_mut().insert(Verdicts { door: Door::Tizen, codes });
    response
}

/// The refusal of a whole request that is over a limit.
fn over_limit(over: &TooFast) -> Response {
    slow_down(refuse(Code::ImpossibleToEnqueue, ""), over)
}

/// Makes an answer one that says which limit was reached and when to try again.
fn slow_down(mut response: Response, over: &TooFast) -> Response {
    *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(over.retry_s()));
    if let Ok(value) = HeaderValue::from_str(&over.to_string()) {
        response.headers_mut().insert(DETAIL, value);
    }
    response
}

/// A refusal of the whole request: the API's answer with empty ids, and the detail in a header.
fn refuse(code: Code, detail: &str) -> Response {
    let mut response = (code.status(), Json(Answer { results: vec![Verdict::new("", "", code)] })).into_response();
    let printable: String = detail.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect();
    if let Ok(value) = HeaderValue::from_str(&printable) {
        response.headers_mut().insert(DETAIL, value);
    }
    if code.is_passing() {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(RETRY_S));
    }
    response.extensions_mut().insert(Verdicts { door: Door::Tizen, codes: [code.number()].into() });
    response
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::proto::AppId;
    use crate::proto::gateway::{Seq, Wanted};
    use crate::server::samples::{SECRET, Stage};

    /// The headers of an app's server.
    fn headers(app: &'static str) -> HeaderMap {
        [("appid", app), ("appsecret", SECRET)]
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .into_iter()
            .collect()
    }

    #[tokio::test]
    async fn a_sender_that_hangs_up_keeps_nobody_from_being_woken() {
        let stage = Stage::new().await;
        let Stage { server, device, reg_id, .. } = &stage;
        let body = json!({ "regID": reg_id, "requestID": "1", "message": "m" });
        let (line, _) = server.registry.enter(*device);

        // The disk is busy while the request comes in and is given up.
        let disk = rusqlite::Connection::open(server.config.database()).unwrap();
        disk.execute_batch("BEGIN IMMEDIATE").unwrap();
        let mut request = Box::pin(push(State(Arc::clone(server)), headers("chat"), Body::from(body.to_string())));
        for _ in 0..20 {
            // Each reader works in order: what was asked before these is answered by now.
            let progress = async {
                server.store.backlog(*device, Wanted::all(Seq(0), 1)).await.unwrap();
                server.store.backlog(*device, Wanted::all(Seq(0), 1)).await.unwrap();
            };
            tokio::select! {
                biased;
                _ = &mut request => panic!("it was answered before it was on disk"),
                () = progress => {}
            }
        }
        drop(request);
        disk.execute_batch("COMMIT").unwrap();

        let signals = tokio::time::timeout(Duration::from_secs(10), line.signals()).await.unwrap();
        assert!(signals.wake);
        assert_eq!(server.store.backlog(*device, Wanted::all(Seq(0), 1)).await.unwrap().rows.len(), 1);
    }

    #[tokio::test]
    async fn a_request_for_which_there_is_no_place_to_wait_is_refused_and_another_app_goes_on() {
        let stage = Stage::new().await;
        let Stage { server, app: chat, reg_id, .. } = &stage;
        let mail: AppId = "mail".parse().unwrap();
        server.store.add_app(mail.clone(), SECRET).await.unwrap();
        let body = json!({ "regID": reg_id, "requestID": "1", "message": "m" });
        let post = async |app| push(State(Arc::clone(server)), headers(app), Body::from(body.to_string())).await;
        server.turns.line_up(&mail).unwrap();
        // As many as are let in, and as many as may wait.
        let mut lines = Vec::new();
        let over = loop {
            match server.turns.line_up(chat) {
                Ok(in_line) => lines.push(in_line),
                Err(over) => break over,
            }
        };
        let refused = post("chat").await;
        assert_eq!(
            (refused.status(), refused.headers()[RETRY_AFTER].to_str().unwrap()),
            (StatusCode::TOO_MANY_REQUESTS, "1")
        );
        assert_eq!(refused.headers()[DETAIL].to_str().unwrap(), over.to_string());
        // Its registration is another app's: the store was asked.
        assert_eq!(post("mail").await.status(), StatusCode::OK);
        drop(lines);
        assert_eq!(post("chat").await.status(), StatusCode::OK);
    }
}
