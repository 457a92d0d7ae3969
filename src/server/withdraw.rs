//! Taking messages back on behalf of their sender.
//!
//! Whether a message may be on its way, only its device's session knows; when it ends, it notes in
//! the store what it has sent. The store holds the message while the session is asked: a session that
//! begins meanwhile does not see it. What was not sent is removed; what may have been sent is shown to
//! the session again. After a crash nobody knows what was sent, before the device has come back.

use std::time::Duration;

use super::Server;
use super::store::delayed::{Candidate, LetGo, Selection, State};
use crate::db::DbError;
use crate::proto::gateway::Seq;
use crate::proto::{AppId, DeviceId, MessageId, RegId};

/// How long a session may take to answer. One that is stuck may be sending the message.
const ANSWER: Duration = Duration::from_secs(2);

/// A message and whether it was taken back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Withdrawn {
    /// Its registration.
    pub reg_id: RegId,
    /// The sender's own id of it.
    pub request_id: Option<String>,
    /// It is not delivered. Otherwise it was sent or has ended.
    pub cancelled: bool,
}

/// Takes back what is selected of the app's messages; `wanted` names recipients.
pub async fn withdraw(
    server: &Server,
    app: AppId,
    selection: Selection,
    wanted: impl Fn(&RegId) -> bool,
) -> Result<Vec<Withdrawn>, DbError> {
    let mut withdrawn = Vec::new();
    for candidate in server.store.hold(app, selection).await? {
        let Candidate { device, reg_id, request_id, state } = candidate;
        let cancelled = match state {
            State::Cancelled => true,
            State::Gone => false,
            State::Held(seq, id) => decide(server, device, (seq, id), wanted(&reg_id)).await?,
        };
        if wanted(&reg_id) {
            withdrawn.push(Withdrawn { reg_id, request_id, cancelled });
        }
    }
    Ok(withdrawn)
}

/// Removes the message that is held unless it may have been sent; returns whether it is gone.
async fn decide(server: &Server, device: DeviceId, place: (Seq, MessageId), wanted: bool) -> Result<bool, DbError> {
    let (seq, id) = place;
    let may_be_sent = match server.registry.was_sent(device, seq, id) {
        None => server.store.crashed_after(seq),
        Some(answer) => match tokio::time::timeout(ANSWER, answer).await {
            Ok(Ok(passed)) => passed,
            // It ended without an answer, or is stuck.
            Ok(Err(_)) | Err(_) => true,
        },
    };
    let become_of_it = server.store.let_go(seq, wanted && !may_be_sent).await?;
    if become_of_it == LetGo::Back {
        server.registry.look_again(device, seq);
    }
    Ok(become_of_it == LetGo::Removed)
}
