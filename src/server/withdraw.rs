//! Taking messages back on behalf of their sender.
//!
//! Whether a message may be on its way, only its device's session knows; when it ends, it notes in
//! the store what it has sent. The store holds the message while the session is asked: a session that
//! begins meanwhile does not see it. What was not sent is removed; what may have been sent is shown to
//! the session again. After a crash nobody knows what was sent, before the device has come back.
//!
//! A request is taken back as a whole or not at all: what has taken the place of a message that may be on
//! its way stays too.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tracing::debug;

use super::Server;
use super::store::delayed::{Candidate, LetGo, Page, Selection, State};
use super::store::sql::REPLACES_MAX;
use super::turns::Turn;
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

/// Takes back what is selected of the app's messages. The app's turn is for the first look into the store:
/// sessions are asked without one.
pub async fn withdraw(
    server: &Arc<Server>,
    app: AppId,
    selection: Selection,
    turn: Turn,
) -> Result<Vec<Withdrawn>, DbError> {
    let (mut withdrawn, mut known, mut before) = (Vec::new(), HashSet::new(), None);
    let mut turn = Some(turn);
    loop {
        let page: Page = server.store.hold(app.clone(), selection.clone(), before).await?;
        drop(turn.take());
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
    let cancelled = match state {
        State::Cancelled => true,
        State::Gone => false,
        State::Delayed(id) => !may_arrive(server, device, earlier).await? && server.store.cancel_delayed(id).await?,
        State::Held(seq, id) => match may_arrive(server, device, earlier).await {
            Ok(stays) => remove_unless_sent(server, device, seq, id, stays).await?,
            Err(error) => {
                tokio::spawn(give_back(Arc::clone(server), device, seq));
                return Err(error);
            }
        },
    };
    Ok(Withdrawn { reg_id, request_id, cancelled })
}

/// Whether the device has or may be given one of these messages, which are no longer in the store.
async fn may_arrive(server: &Server, device: DeviceId, messages: Vec<(Seq, MessageId)>) -> Result<bool, DbError> {
    if messages.is_empty() {
        return Ok(false);
    }
    // There may have been more than are known.
    if messages.len() >= REPLACES_MAX {
        return Ok(true);
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

/// Removes the message that is held unless it `stays` or may have been sent; returns whether it is gone.
async fn remove_unless_sent(
    server: &Arc<Server>,
    device: DeviceId,
    seq: Seq,
    id: MessageId,
    stays: bool,
) -> Result<bool, DbError> {
    let removable = !stays && !may_be_sent(server, device, seq, id).await;
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
    use crate::proto::gateway::{Backlog, Sent, Wanted};
    use crate::server::samples::Stage;
    use crate::world;

    #[tokio::test]
    async fn what_cannot_be_removed_does_not_stay_held() {
        let stage = Stage::new().await;
        let Stage { server, device, app, .. } = &stage;
        let id = stage.accept(stage.push("1"), None).await;
        server.store.end().await.unwrap();
        let (line, _) = server.registry.enter(*device);

        let beside = rusqlite::Connection::open(server.config.database()).unwrap();
        let fail = "CREATE TRIGGER fail BEFORE DELETE ON messages BEGIN SELECT RAISE(ABORT, 'no'); END";
        beside.execute_batch(fail).unwrap();
        let answer = async {
            for (_, _, answer) in line.signals().await.questions {
                answer.send(false).unwrap();
            }
        };
        let turn = server.turns.line_up(app).unwrap().turn().await.unwrap();
        let (withdrawn, ()) = tokio::join!(withdraw(server, app.clone(), Selection::Message(id), turn), answer);
        withdrawn.unwrap_err();
        let signals = tokio::time::timeout(Duration::from_secs(10), line.signals()).await.unwrap();
        assert!(signals.look_again.is_some());
        let Backlog { rows, .. } = server.store.backlog(*device, Wanted::all(Seq(0), 1)).await.unwrap();
        assert_eq!(rows[0].push.id, id);
    }

    /// Takes the request "offer" back; returns whether it was.
    async fn taken_back(stage: &Stage) -> bool {
        let turn = stage.server.turns.line_up(&stage.app).unwrap().turn().await.unwrap();
        let offer = Selection::Request("offer".into(), None);
        let withdrawn = withdraw(&stage.server, stage.app.clone(), offer, turn).await.unwrap();
        assert_eq!(withdrawn.len(), 1);
        withdrawn[0].cancelled
    }

    /// Has the store take two messages of the request, the second one delayed or not; returns the first's
    /// place and id.
    async fn replaced(stage: &Stage, delayed: bool) -> Sent {
        let now = world::now();
        let id = stage.accept(stage.push("offer"), None).await;
        let seq = stage.server.store.last_seq();
        stage.accept(stage.push("offer"), delayed.then_some(UnixMillis(now.0 + 30_000))).await;
        Sent { seq, id, at_ms: Some(now) }
    }

    #[tokio::test]
    async fn a_request_is_taken_back_whole_or_not_at_all() {
        for delayed in [false, true] {
            let stage = Stage::new().await;
            let Stage { server, device, .. } = &stage;
            let stays = async || server.store.next_due().await.unwrap().is_some();
            replaced(&stage, delayed).await;
            assert!(taken_back(&stage).await && !stays().await);

            // Its session says what it has sent.
            for was_sent in [false, true] {
                let first = replaced(&stage, delayed).await;
                let (line, _) = server.registry.enter(*device);
                let answer = async {
                    loop {
                        for (_, id, answer) in line.signals().await.questions {
                            answer.send(id == first.id && was_sent).unwrap();
                        }
                    }
                };
                let cancelled = tokio::select! {
                    cancelled = taken_back(&stage) => cancelled,
                    () = answer => unreachable!(),
                };
                assert_eq!((cancelled, stays().await), (!was_sent, was_sent));
                server.registry.leave(*device, &line);
            }
        }
    }

    #[tokio::test]
    async fn what_an_ended_session_has_sent_of_a_request_or_may_have_before_a_crash_is_not_taken_back() {
        for delayed in [false, true] {
            let stage = Stage::new().await;
            let first = replaced(&stage, delayed).await;
            stage.server.store.sent(vec![first]).await.unwrap();
            assert!(!taken_back(&stage).await);
            // One that takes the place of both is in the same case.
            stage.accept(stage.push("offer"), Some(UnixMillis(world::now().0 + 30_000))).await;
            assert!(!taken_back(&stage).await);

            let stage = Stage::new().await;
            replaced(&stage, delayed).await;
            assert!(!taken_back(&stage.crashed().await).await);
        }
    }

    #[tokio::test]
    async fn of_too_many_the_one_that_was_sent_is_known() {
        let stage = Stage::new().await;
        for _ in 0..REPLACES_MAX {
            stage.accept(stage.push("offer"), None).await;
        }
        let sent = replaced(&stage, false).await;
        stage.server.store.sent(vec![sent]).await.unwrap();
        stage.accept(stage.push("offer"), None).await;
        stage.accept(stage.push("offer"), None).await;
        let Backlog { rows, .. } = stage.server.store.backlog(stage.device, Wanted::all(Seq(0), 1)).await.unwrap();
        assert_eq!((rows[0].replaces.len(), rows[0].replaces.contains(&sent.id)), (REPLACES_MAX, true));
        assert!(!taken_back(&stage).await);
    }
}
