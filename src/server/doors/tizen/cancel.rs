//! Taking notifications back: `{"cancel": requestID}`, with `regID` for these recipients only.
//!
//! The answer has a result for each recipient: 1000 if the notification is not delivered, 3014 if it
//! was sent or had ended. Without `regID` every region is asked.

use std::sync::Arc;

use futures_util::future::join_all;

use super::request::{Cancel, Recipient};
use super::{Answer, Code, PATH, Sender, Verdict, answer, is_passing, over_limit, refuse};
use axum::response::Response;

use crate::db::DbError;
use crate::proto::Region;
use crate::server::Server;
use crate::server::store::delayed::Selection;
use crate::server::turns::Turn;
use crate::server::withdraw::{Withdrawn, withdraw};

/// Cancels what the sender names.
pub async fn cancel(server: &Arc<Server>, sender: &Sender, request: Cancel) -> Response {
    // Before anybody else is asked: what is refused here is refused as a whole.
    let turn = async { server.turns.line_up(&sender.app)?.turn().await };
    let turn = match turn.await {
        Ok(turn) => turn,
        Err(over) => return over_limit(&over),
    };
    let (here, there) =
        tokio::join!(cancel_here(server, sender, &request, turn), cancel_there(server, sender, &request));
    let Ok(here) = here else { return refuse(Code::Internal, "the store cannot be used") };
    let results = match request.recipients.as_slice() {
        [] => all(&request, &here, there),
        named => named.iter().map(|recipient| verdict(&request, recipient, &here, &there)).collect(),
    };
    answer(results)
}

/// What other regions say.
struct There {
    verdicts: Vec<Verdict>,
    /// These do not answer, or not now.
    silent: Vec<Region>,
}

/// The results for a request that names nobody.
fn all(request: &Cancel, here: &[Withdrawn], there: There) -> Vec<Verdict> {
    let new = |reg_id: &str, code| Verdict::new(reg_id, &request.request_id, code);
    let here = here.iter().map(|withdrawn| new(&withdrawn.reg_id.to_string(), code(withdrawn.cancelled)));
    // A region that knows nothing of it says so with a result for nobody.
    let there_too = there.verdicts.into_iter().filter(|verdict| !verdict.reg_id.is_empty());
    let silent = there.silent.iter().map(|_| new("", Code::Io));
    let results: Vec<Verdict> = here.chain(there_too).chain(silent).collect();
    if results.is_empty() { vec![new("", Code::NotInQueue)] } else { results }
}

/// The result for one recipient that the request names.
fn verdict(request: &Cancel, recipient: &Recipient, here: &[Withdrawn], there: &There) -> Verdict {
    let new = |code| Verdict::new(&recipient.shown, &request.request_id, code);
    let reg_id = match &recipient.reg_id {
        Ok(reg_id) => reg_id,
        Err(code) => return new(*code),
    };
    if let Some(withdrawn) = here.iter().find(|withdrawn| withdrawn.reg_id == *reg_id) {
        return new(code(withdrawn.cancelled));
    }
    match there.verdicts.iter().find(|verdict| verdict.reg_id == recipient.shown) {
        Some(theirs) => theirs.clone(),
        None if there.silent.contains(&reg_id.region()) => new(Code::Io),
        None => new(Code::NotInQueue),
    }
}

fn code(cancelled: bool) -> Code {
    if cancelled { Code::Success } else { Code::NotInQueue }
}

async fn cancel_here(
    server: &Arc<Server>,
    sender: &Sender,
    request: &Cancel,
    turn: Turn,
) -> Result<Vec<Withdrawn>, DbError> {
    let named = request.recipients.iter().filter_map(|recipient| recipient.reg_id.ok()).collect();
    let recipients = (!request.recipients.is_empty()).then_some(named);
    let selection = Selection::Request(request.request_id.clone(), recipients);
    withdraw(server, sender.app.clone(), selection, turn).await
}

/// What the other regions answer that may have been sent such a notification.
async fn cancel_there(server: &Server, sender: &Sender, request: &Cancel) -> There {
    let mut there = There { verdicts: Vec::new(), silent: Vec::new() };
    if sender.forwarded {
        return there;
    }
    let concerned = |region: &Region| {
        let of = |recipient: &Recipient| recipient.reg_id.as_ref().is_ok_and(|reg_id| reg_id.region() == *region);
        request.recipients.is_empty() || request.recipients.iter().any(of)
    };
    let body = serde_json::Value::Object(request.raw.clone()).to_string();
    let asked = server.regions.all().filter(concerned).map(|region| {
        let body = body.clone();
        async move { (region, server.regions.post(region, PATH, &sender.headers(), body).await) }
    });
    for (region, body) in join_all(asked).await {
        match body.and_then(|body| serde_json::from_slice::<Answer>(&body).ok()) {
            // A refusal that passes is one result that names nobody.
            Some(answer) if answer.results.iter().any(|verdict| verdict.reg_id.is_empty() && is_passing(verdict)) => {
                there.silent.push(region);
            }
            Some(answer) => there.verdicts.extend(answer.results),
            None => there.silent.push(region),
        }
    }
    there
}
