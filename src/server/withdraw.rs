//! Taking messages back on behalf of their sender.
//!
//! Whether a message may be on its way, only its device's session knows; when it ends, it notes in
//! the store what it has sent. The store holds the message while the session is asked: a session that
//! begins meanwhile does not see it. What was not sent is removed; what may have been sent is shown to
//! the session again. After a crash nobody knows what was sent, before the device has come back.
//!
//! A request is not taken back as long as the device may be given one of its messages: also one that is on
//! its way and whose place the message has taken that is removed here.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tracing::debug;

use super::Server;
use super::rates::TooFast;
use super::store::delayed::{Candidate, LetGo, Page, Selection, State};
use crate::db::DbError;
use crate::proto::gateway::Seq;
use crate::proto::{AppId, DeviceId, MessageId, RegId};

/// How long a session may take to answer. One that is stuck may be sending the message.
const ANSWER: Duration = Duration::from_secs(2);
/// The pause after the store failed.
const STORE_RETRY: Duration = Duration::from_secs(5);
/// Most recipients for whom one request takes something back.
const RECIPIENTS_MAX: usize = 100_000;

/// A message and whether it was taken back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Withdrawn {
    /// Its registration.
    pub reg_id: RegId,
    /// The sender's own id of it.
    pub request_id: Option<String>,
    /// Nothing of it is delivered. Otherwise it was sent or has ended.
    pub cancelled: bool,
}

/// Why nothing is taken back now.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Refused {
    /// Too many requests of the app wait already.
    #[error(transparent)]
    TooFast(#[from] TooFast),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] DbError),
}

/// Takes back what is selected of the app's messages, when it is the app's turn.
pub async fn withdraw(server: &Arc<Server>, app: AppId, selection: Selection) -> Result<Vec<Withdrawn>, Refused> {
    let _turn = server.turns.take(&app).await?;
    let (mut withdrawn, mut known, mut before) = (Vec::new(), HashSet::new(), None);
    loop {
        let page: Page = server.store.hold(app.clone(), selection.clone(), before).await?;
        // All of them are decided about, whatever becomes of one: none stays held.
        let decided = join_all(page.candidates.into_iter().map(|candidate| decide(server, candidate))).await;
        for one in decided {
            let one = one?;
            if known.insert(one.reg_id) {
                withdrawn.push(one);
            }
        }
        before = page.before;
        if before.is_none() || withdrawn.len() >= RECIPIENTS_MAX {
            return Ok(withdrawn);
        }
    }
}

async fn decide(server: &Arc<Server>, candidate: Candidate) -> Result<Withdrawn, DbError> {
    let Candidate { device, reg_id, request_id, state, earlier } = candidate;
    let removed = match state {
        State::Cancelled => true,
        State::Gone => false,
        State::Held(seq, id) => remove_unless_sent(server, device, seq, id).await?,
    };
    let cancelled = removed && !may_arrive(server, device, earlier).await?;
    Ok(Withdrawn { reg_id, request_id, cancelled })
}

/// Whether the device has or may be given one of these messages, which are no longer in the store.
async fn may_arrive(server: &Server, device: DeviceId, messages: Vec<(Seq, MessageId)>) -> Result<bool, DbError> {
    if messages.is_empty() {
        return Ok(false);
    }
    let asked = messages.iter().map(|(seq, id)| may_be_sent(server, device, *seq, *id));
    if join_all(asked).await.contains(&true) {
        return Ok(true);
    }
    // Behind the sessions: one that has just ended has noted what it sent.
    server.store.were_sent(messages.into_iter().map(|(_, id)| id).collect()).await
}

/// Whether the device's session may have sent the message, or one before the server crashed.
async fn may_be_sent(server: &Server, device: DeviceId, seq: Seq, id: MessageId) -> bool {
    match server.registry.was_sent(device, seq, id) {
        None => server.store.crashed_after(seq),
        Some(answer) => match tokio::time::timeout(ANSWER, answer).await {
            Ok(Ok(sent)) => sent,
            // It ended without an answer, or is stuck.
            Ok(Err(_)) | Err(_) => true,
        },
    }
}

/// Removes the message that is held unless it may have been sent; returns whether it is gone.
async fn remove_unless_sent(server: &Arc<Server>, device: DeviceId, seq: Seq, id: MessageId) -> Result<bool, DbError> {
    let removable = !may_be_sent(server, device, seq, id).await;
    match server.store.let_go(seq, removable).await {
        Ok(LetGo::Removed) => Ok(true),
        Ok(LetGo::Back) => {
            server.registry.look_again(device, seq);
            Ok(false)
        }
        Ok(LetGo::Gone) => Ok(false),
        Err(error) => {
            tokio::spawn(give_back(Arc::clone(server), device, seq));
            Err(error)
        }
    }
}

/// Lets a message be sent again as soon as the store works: held, it would wait for a restart.
async fn give_back(server: Arc<Server>, device: DeviceId, seq: Seq) {
    loop {
        match server.store.let_go(seq, false).await {
            Ok(LetGo::Back) => return server.registry.look_again(device, seq),
            Ok(LetGo::Removed | LetGo::Gone) | Err(DbError::Stopped) => return,
            Err(error) => {
                debug!("a message stays held: {error}");
                tokio::time::sleep(STORE_RETRY).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::UnixMillis;
    use crate::server::samples::Stage;
    use crate::world;

    #[tokio::test]
    async fn what_cannot_be_removed_does_not_stay_held() {
        let stage = Stage::new().await;
        let Stage { server, device, app, .. } = &stage;
        let push = stage.push("1");
        let id = push.id;
        stage.accept(push, None).await;
        server.store.end().await.unwrap();
        let line = server.registry.enter(*device);

        let beside = rusqlite::Connection::open(server.config.database()).unwrap();
        let fail = "CREATE TRIGGER fail BEFORE DELETE ON messages BEGIN SELECT RAISE(ABORT, 'no'); END";
        beside.execute_batch(fail).unwrap();
        let answer = async {
            for (_, _, answer) in line.signals().await.questions {
                answer.send(false).unwrap();
            }
        };
        let (withdrawn, ()) = tokio::join!(withdraw(server, app.clone(), Selection::Message(id)), answer);
        withdrawn.unwrap_err();
        let signals = tokio::time::timeout(Duration::from_secs(10), line.signals()).await.unwrap();
        assert!(signals.look_again.is_some());
        let (rows, _) = server.store.backlog(*device, Seq(0), 1).await.unwrap();
        assert_eq!(rows[0].push.id, id);
    }

    /// Takes the request back while its later message is delayed and its earlier one has this place; the
    /// session says whether it has sent that.
    async fn taken_back(stage: &Stage, is_sent: Option<bool>) -> bool {
        let Stage { server, device, app, .. } = stage;
        stage.accept(stage.push("offer"), None).await;
        let line = is_sent.map(|_| server.registry.enter(*device));
        stage.accept(stage.push("offer"), Some(UnixMillis(world::now().0 + 30_000))).await;
        let answer = async {
            let Some(line) = &line else { return };
            for (_, _, answer) in line.signals().await.questions {
                answer.send(is_sent == Some(true)).unwrap();
            }
        };
        let offer = Selection::Request("offer".into(), None);
        let (withdrawn, ()) = tokio::join!(withdraw(server, app.clone(), offer), answer);
        let withdrawn = withdrawn.unwrap();
        assert_eq!(withdrawn.len(), 1);
        // Its later message is gone in any case.
        assert_eq!(server.store.next_due().await.unwrap(), None);
        line.into_iter().for_each(|line| server.registry.leave(*device, &line));
        withdrawn[0].cancelled
    }

    #[tokio::test]
    async fn a_request_is_not_taken_back_while_an_earlier_message_of_it_may_arrive() {
        let stage = Stage::new().await;
        stage.server.store.end().await.unwrap();
        assert!(taken_back(&stage, None).await);
        assert!(taken_back(&stage, Some(false)).await);
        assert!(!taken_back(&stage, Some(true)).await);
    }
}
