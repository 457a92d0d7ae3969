//! Messages on their way to an app: what is received is decided about, kept until it is read, and
//! settled once.
//!
//! A message, its effect on the badge, and whatever else it is to bring about are one transaction:
//! a power cut leaves all of them or none. What a message asks for is decided when it is received
//! if its app is away, or else when the app goes without having taken it.

use rusqlite::{Connection, OptionalExtension, Row, ToSql, params};

use super::apps::AppRow;
use super::history::{self, Hop};
use super::schema::{Result, id, json, text, to_json};
use super::{Store, apps, effects, outcomes};
use crate::agent::config::Limits;
use crate::agent::plan::{Place, Plan, plan};
use crate::daemon::fault_point;
use crate::db::DbError;
use crate::proto::frame::{Delivery, NotKept, WINDOW};
use crate::proto::{AppId, MessageId, Push, UnixMillis};
use crate::world;

/// A message that waits for its app.
#[derive(Clone, Debug, PartialEq)]
pub struct Unread {
    /// Its place in the order of arrival.
    pub place: i64,
    /// When the device stored it.
    pub received_ms: UnixMillis,
    /// From when on it is not delivered: its own expiry, or the device's limit if that is earlier.
    pub expires_ms: UnixMillis,
    /// Older messages of the app that had to go before this one.
    pub dropped: u32,
    /// The app was started for this message.
    pub launched: bool,
    /// The notification.
    pub push: Push,
}

impl Unread {
    /// Whether it may no longer be delivered at `now`.
    pub fn expired(&self, now: UnixMillis) -> bool {
        self.expires_ms <= now
    }
}

/// What messages changed that somebody has to be told.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    /// Badges are not what they were.
    pub badges: bool,
    /// There is something to show or to start.
    pub effects: bool,
    /// Some outcomes are settled.
    pub outcomes: bool,
}

/// Whether an app is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It is connected.
    Connected,
    /// The daemon has started it, and it has not connected yet.
    Awaited,
    /// Neither.
    Away,
}

/// The result of [`Store::receive`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Received {
    /// Pushes that are on disk now, or were before, or did at once what they asked for.
    pub ids: Vec<MessageId>,
    /// Pushes that are not kept.
    pub not_kept: Vec<(MessageId, NotKept)>,
    /// Apps that have something new.
    pub apps: Vec<AppId>,
    /// Apps that are not registered here, although the server has messages for them.
    pub unwanted: Vec<AppId>,
    /// What else has changed.
    pub changes: Changes,
}

impl Store {
    /// Puts pushes on disk, each id once, for apps that are registered with that regId, and decides
    /// what else they do. `connected` is asked in the transaction.
    pub async fn receive(
        &self,
        batch: Vec<Delivery>,
        connected: impl Fn(&AppId) -> bool + Send + 'static,
    ) -> Result<Received, DbError> {
        let limits = self.limits;
        self.worker.write(move |db| receive(db, batch, limits, connected, world::now())).await
    }

    /// Decides about the messages that were for the app when it was connected and that it has not
    /// taken, unless it is connected; why it was started is over as well, unless it is awaited.
    pub async fn left(
        &self,
        app: AppId,
        presence: impl Fn(&AppId) -> Presence + Send + 'static,
    ) -> Result<Changes, DbError> {
        self.worker
            .write(move |db| {
                let presence = presence(&app);
                if presence == Presence::Connected {
                    return Ok(Changes::default());
                }
                apps::set_connected(db, &app, false)?;
                if presence == Presence::Away {
                    apps::set_launch(db, &app, None)?;
                }
                plan_left_over(db, &app, world::now())
            })
            .await
    }

    /// Apps for which [`left`](Self::left) would do something.
    pub async fn left_over(&self) -> Result<Vec<AppId>, DbError> {
        self.worker
            .read(|db| {
                db.prepare_cached(
                    "SELECT app FROM unread WHERE NOT planned
                     UNION SELECT app FROM apps WHERE launch_type IS NOT NULL",
                )?
                .query_map([], |row| text(row, 0))?
                .collect()
            })
            .await
    }

    /// The ids of the last pushes that were kept, as many as the window is wide.
    pub async fn resume_point(&self) -> Result<Vec<MessageId>, DbError> {
        self.worker.read(resume_point).await
    }

    /// The app's oldest unread message that has not expired. Those that have are settled.
    pub async fn next_unread(&self, app: AppId) -> Result<Option<Unread>, DbError> {
        let wanted = app.clone();
        match self.worker.read(move |db| oldest(db, &wanted)).await? {
            Some(unread) if unread.expired(world::now()) => {
                self.worker.write(move |db| skip_expired(db, &app, world::now())).await
            }
            unread => Ok(unread),
        }
    }

    /// Whether the message was there when the daemon started.
    pub fn is_from_earlier_run(&self, unread: &Unread) -> bool {
        unread.place <= self.last_place
    }

    /// How many unread messages the app has.
    pub async fn count_unread(&self, app: AppId) -> Result<u32, DbError> {
        self.worker.read(move |db| count(db, &app)).await
    }

    /// The app has taken this message. Whether an alert of it is on the screen.
    pub async fn delivered(&self, unread: &Unread) -> Result<bool, DbError> {
        let unread = unread.clone();
        self.worker
            .write(move |db| {
                deliver(db, &unread, world::now())?;
                effects::is_shown(db, unread.push.id)
            })
            .await
    }
}

/// How long an id is remembered after its push expired: server and device may disagree about the
/// time by as much.
const CLOCKS_APART_MS: i64 = 2 * 24 * 3600 * 1000;
/// Most ids that are remembered.
const SEEN_MAX: i64 = 20_000;
/// After this many pushes, what need not be remembered any longer is removed.
const HOUSEKEEPING_EVERY: i64 = 64;

fn receive(
    db: &Connection,
    batch: Vec<Delivery>,
    limits: Limits,
    connected: impl Fn(&AppId) -> bool,
    now: UnixMillis,
) -> Result<Received> {
    let do_not_disturb = super::do_not_disturb(db)?;
    let mut received = Received::default();
    for delivery in batch {
        let push = &delivery.push;
        let Some(place) = remember(db, push)? else {
            match not_kept(db, push.id)? {
                Some(why) => received.not_kept.push((push.id, why)),
                None => received.ids.push(push.id),
            }
            continue;
        };
        history::begin(db, place, push)?;
        if place % HOUSEKEEPING_EVERY == 0 {
            forget_old(db, now)?;
            history::trim(db, place)?;
        }
        let wanted = |app: &AppRow| app.reg_id == Some(push.reg_id) && app.switches.enabled;
        let app = apps::find(db, &push.app)?.filter(wanted);
        let Some(app) = app.filter(|_| !push.expired(now)) else {
            let why = if push.expired(now) { NotKept::Expired } else { NotKept::Unwanted };
            pass_over(db, push.id, why, now)?;
            received.not_kept.push((push.id, why));
            if why == NotKept::Unwanted && !received.unwanted.contains(&push.app) {
                received.unwanted.push(push.app.clone());
            }
            continue;
        };
        received.ids.push(push.id);
        let Some(dropped) = replace(db, &delivery, now)? else {
            history::add(db, push.id, Hop::TooLate, None, now)?;
            received.changes.outcomes = true;
            continue;
        };
        let plan = plan(push, connected(&push.app), app.badge, app.switches.settings(do_not_disturb));
        if plan.place == Place::Nowhere {
            history::add(db, push.id, Hop::Discarded, reasons(&plan).as_deref(), now)?;
            received.changes.outcomes = true;
            carry(db, &push.app, dropped)?;
            continue;
        }
        history::add(db, push.id, Hop::Received, reasons(&plan).as_deref(), now)?;
        keep(db, push, delivery.dropped + dropped, plan.place, limits, now)?;
        fault_point("keeping");
        bring_about(db, push, &plan, &mut received.changes)?;
        if !received.apps.contains(&push.app) {
            received.apps.push(push.app.clone());
        }
    }
    Ok(received)
}

fn reasons(plan: &Plan) -> Option<String> {
    (!plan.reasons.is_empty()).then(|| plan.reasons.join("; "))
}

/// Notes the push's id and returns its place; `None` if it was noted before.
fn remember(db: &Connection, push: &Push) -> Result<Option<i64>> {
    let forget = push.expires_ms.0.saturating_add(CLOCKS_APART_MS);
    db.prepare_cached("INSERT INTO seen (id, forget_ms) VALUES (?1, ?2) ON CONFLICT DO NOTHING RETURNING place")?
        .query_row(params![push.id.as_bytes(), forget], |row| row.get(0))
        .optional()
}

/// Notes that the push is not kept, for as long as it may come again. The server learns it in place
/// of an acknowledgement.
fn pass_over(db: &Connection, id: MessageId, why: NotKept, now: UnixMillis) -> Result<()> {
    db.prepare_cached("UPDATE seen SET not_kept = ?2 WHERE id = ?1")?
        .execute(params![id.as_bytes(), why.fate().name()])?;
    let hop = match why {
        NotKept::Expired => Hop::Expired,
        NotKept::Unwanted => Hop::Unwanted,
    };
    history::note(db, id, hop, None, now)
}

/// Why the push, which came before, is not kept; `None` if it is or was.
fn not_kept(db: &Connection, id: MessageId) -> Result<Option<NotKept>> {
    let fate: Option<String> =
        db.prepare_cached("SELECT not_kept FROM seen WHERE id = ?1")?.query_row([id.as_bytes()], |row| row.get(0))?;
    Ok(fate.and_then(|fate| NotKept::ALL.into_iter().find(|why| why.fate().name() == fate)))
}

fn keep(db: &Connection, push: &Push, dropped: u32, place: Place, limits: Limits, now: UnixMillis) -> Result<()> {
    // A clock that is behind the server's would end the message as soon as it is set right.
    let longest = now.0.max(push.accepted_ms.0).saturating_add(i64::from(limits.unread_hours) * 3_600_000);
    db.prepare_cached(
        "INSERT INTO unread (app, received_ms, expires_ms, dropped, body, bytes, id, request_id, planned)
         VALUES (?1, ?2, ?3, ?4, ?5, octet_length(?5), ?6, ?7, ?8)",
    )?
    .execute(params![
        push.app.as_str(),
        now.0,
        push.expires_ms.0.min(longest),
        dropped,
        to_json(push)?,
        push.id.as_bytes(),
        push.request_id,
        place == Place::Unread
    ])?;
    while over_app_limit(db, &push.app, limits)? {
        drop_oldest(db, &push.app, now)?;
    }
    while over_total_limit(db, limits)? {
        drop_oldest(db, &largest(db)?, now)?;
    }
    Ok(())
}

/// What a message does beside being kept.
fn bring_about(db: &Connection, push: &Push, plan: &Plan, changes: &mut Changes) -> Result<()> {
    if let Some(badge) = plan.badge {
        apps::set_badge(db, &push.app, badge)?;
        changes.badges = true;
    }
    if let Some(effect) = plan.effect {
        effects::add(db, push, effect)?;
        changes.effects = true;
    }
    Ok(())
}

fn plan_left_over(db: &Connection, app: &AppId, now: UnixMillis) -> Result<Changes> {
    let mut changes = Changes::default();
    let do_not_disturb = super::do_not_disturb(db)?;
    let unread: Vec<Unread> = db
        .prepare_cached(&format!("SELECT {COLUMNS} FROM unread WHERE app = ?1 AND NOT planned ORDER BY place"))?
        .query_map([app.as_str()], from_row)?
        .collect::<Result<_>>()?;
    for unread in unread {
        let Some(row) = apps::find(db, app)? else { break };
        let plan = plan(&unread.push, false, row.badge, row.switches.settings(do_not_disturb));
        if plan.place == Place::Nowhere {
            remove(db, unread.place, unread.push.id, Hop::Discarded, now)?;
            carry(db, app, unread.dropped)?;
            changes.outcomes = true;
            continue;
        }
        db.prepare_cached("UPDATE unread SET planned = 1 WHERE place = ?1")?.execute([unread.place])?;
        bring_about(db, &unread.push, &plan, &mut changes)?;
    }
    Ok(changes)
}

/// Whether the app's queue is too long. A single message is always kept.
fn over_app_limit(db: &Connection, app: &AppId, limits: Limits) -> Result<bool> {
    db.prepare_cached("SELECT count(*), coalesce(sum(bytes), 0) FROM unread WHERE app = ?1")?
        .query_row([app.as_str()], |row| over(row, limits.unread_messages, limits.unread_bytes))
}

/// Whether all queues together are too long.
fn over_total_limit(db: &Connection, limits: Limits) -> Result<bool> {
    db.prepare_cached("SELECT count(*), coalesce(sum(bytes), 0) FROM unread")?
        .query_row([], |row| over(row, limits.total_messages, limits.total_bytes))
}

fn over(row: &Row<'_>, messages: u32, bytes: u64) -> Result<bool> {
    let (count, sum): (u32, i64) = (row.get(0)?, row.get(1)?);
    Ok(count > 1 && (count > messages || sum.unsigned_abs() > bytes))
}

/// The app whose unread messages take the most room: it makes room for the others.
fn largest(db: &Connection) -> Result<AppId> {
    db.prepare_cached("SELECT app FROM unread GROUP BY app ORDER BY sum(bytes) DESC LIMIT 1")?
        .query_row([], |row| text(row, 0))
}

/// Drops the app's oldest message; the next one says so to the app.
fn drop_oldest(db: &Connection, app: &AppId, now: UnixMillis) -> Result<()> {
    let Some(oldest) = oldest(db, app)? else { return Ok(()) };
    let expired = oldest.expired(now);
    remove(db, oldest.place, oldest.push.id, if expired { Hop::Expired } else { Hop::Dropped }, now)?;
    carry(db, app, oldest.dropped + u32::from(!expired))
}

/// Adds to the count that the app's oldest message carries.
fn carry(db: &Connection, app: &AppId, dropped: u32) -> Result<()> {
    db.prepare_cached(
        "UPDATE unread SET dropped = dropped + ?2 WHERE place = (SELECT min(place) FROM unread WHERE app = ?1)",
    )?
    .execute(params![app.as_str(), dropped])?;
    Ok(())
}

const COLUMNS: &str = "place, received_ms, expires_ms, dropped, body,
    id = (SELECT launch_id FROM apps WHERE apps.app = unread.app AND launch_type = 'notification')";

fn from_row(row: &Row<'_>) -> Result<Unread> {
    Ok(Unread {
        place: row.get(0)?,
        received_ms: UnixMillis(row.get(1)?),
        expires_ms: UnixMillis(row.get(2)?),
        dropped: row.get(3)?,
        push: json(row, 4)?,
        launched: row.get::<_, Option<bool>>(5)?.unwrap_or(false),
    })
}

fn oldest(db: &Connection, app: &AppId) -> Result<Option<Unread>> {
    db.prepare_cached(&format!("SELECT {COLUMNS} FROM unread WHERE app = ?1 ORDER BY place LIMIT 1"))?
        .query_row([app.as_str()], from_row)
        .optional()
}

/// Settles the app's expired messages at the head of its queue; returns the first that is left.
fn skip_expired(db: &Connection, app: &AppId, now: UnixMillis) -> Result<Option<Unread>> {
    while let Some(unread) = oldest(db, app)? {
        if !unread.expired(now) {
            return Ok(Some(unread));
        }
        remove(db, unread.place, unread.push.id, Hop::Expired, now)?;
        carry(db, app, unread.dropped)?;
    }
    Ok(None)
}

/// The message is unread no longer: this became of it.
fn remove(db: &Connection, place: i64, id: MessageId, end: Hop, now: UnixMillis) -> Result<()> {
    unqueue(db, place, id)?;
    history::add(db, id, end, None, now)
}

pub(super) fn unqueue(db: &Connection, place: i64, id: MessageId) -> Result<()> {
    db.prepare_cached("DELETE FROM unread WHERE place = ?1")?.execute([place])?;
    effects::remove(db, id)
}

/// Takes away what this message replaces: what the server names, and what is unread of its request
/// id. Returns how many dropped messages these stood for; `None` if the app has been given one of
/// them. One that is in the app's hands at this moment is gone as well; if the app takes it,
/// [`deliver`] takes this one away instead.
fn replace(db: &Connection, delivery: &Delivery, now: UnixMillis) -> Result<Option<u32>> {
    let (push, mut dropped) = (&delivery.push, 0);
    for id in &delivery.replaces {
        // One that is still on its way comes to nothing.
        let forget = push.expires_ms.0.saturating_add(CLOCKS_APART_MS);
        let was_given = db
            .prepare_cached(
                "INSERT INTO seen (id, forget_ms) VALUES (?1, ?2)
                 ON CONFLICT (id) DO UPDATE SET forget_ms = max(forget_ms, ?2) RETURNING delivered",
            )?
            .query_row(params![id.as_bytes(), forget], |row| row.get(0))?;
        if was_given {
            return Ok(None);
        }
        let unread = unread_of(db, &push.app, "id = ?2", id.as_bytes())?;
        dropped += remove_each(db, unread, Hop::Replaced, now)?;
    }
    if let Some(request_id) = &push.request_id {
        let unread = unread_of(db, &push.app, "request_id = ?2", request_id)?;
        dropped += remove_each(db, unread, Hop::Replaced, now)?;
    }
    Ok(Some(dropped))
}

/// The app has been given the message, and so nothing that was to take its place.
fn deliver(db: &Connection, unread: &Unread, now: UnixMillis) -> Result<()> {
    let push = &unread.push;
    remove(db, unread.place, push.id, Hop::Delivered, now)?;
    db.prepare_cached("UPDATE seen SET delivered = 1 WHERE id = ?1")?.execute([push.id.as_bytes()])?;
    let Some(request_id) = &push.request_id else { return Ok(()) };
    let late = unread_of(db, &push.app, "request_id = ?2", request_id)?;
    let dropped = remove_each(db, late, Hop::TooLate, now)?;
    carry(db, &push.app, dropped)
}

/// Removes all messages of an app that is no longer there.
pub(super) fn remove_all(db: &Connection, app: &AppId, now: UnixMillis) -> Result<()> {
    let all = unread_of(db, app, "?2", true)?;
    remove_each(db, all, Hop::Unwanted, now).map(drop)
}

/// The place and id of a message, and how many dropped ones it stands for.
type Brief = (i64, MessageId, u32);

/// The app's unread messages for which this is true of `?2`.
fn unread_of(db: &Connection, app: &AppId, condition: &str, value: impl ToSql) -> Result<Vec<Brief>> {
    db.prepare_cached(&format!("SELECT place, id, dropped FROM unread WHERE app = ?1 AND {condition}"))?
        .query_map(params![app.as_str(), value], |row| Ok((row.get(0)?, id(row, 1)?, row.get(2)?)))?
        .collect()
}

/// Removes messages that have come to this end; returns how many dropped ones they stood for.
fn remove_each(db: &Connection, all: Vec<Brief>, end: Hop, now: UnixMillis) -> Result<u32> {
    let mut stood_for = 0;
    for (place, id, dropped) in all {
        remove(db, place, id, end, now)?;
        stood_for += dropped;
    }
    Ok(stood_for)
}

/// The last place that was given to a message that is still unread.
pub(super) fn last_place(db: &Connection) -> Result<i64> {
    db.query_row("SELECT coalesce(max(place), 0) FROM unread", [], |row| row.get(0))
}

fn count(db: &Connection, app: &AppId) -> Result<u32> {
    db.prepare_cached("SELECT count(*) FROM unread WHERE app = ?1 AND expires_ms > ?2")?
        .query_row(params![app.as_str(), world::now().0], |row| row.get(0))
}

fn resume_point(db: &Connection) -> Result<Vec<MessageId>> {
    let window = i64::try_from(WINDOW).unwrap_or(i64::MAX);
    db.prepare_cached("SELECT id FROM seen WHERE not_kept IS NULL ORDER BY place DESC LIMIT ?1")?
        .query_map([window], |row| id(row, 0))?
        .collect()
}

fn forget_old(db: &Connection, now: UnixMillis) -> Result<()> {
    let window = i64::try_from(WINDOW).unwrap_or(0);
    db.prepare_cached(
        "DELETE FROM seen WHERE (forget_ms <= ?1 AND place <= (SELECT max(place) FROM seen) - ?2)
                             OR place <= (SELECT max(place) FROM seen) - ?3",
    )?
    .execute(params![now.0, window, SEEN_MAX])?;
    outcomes::trim(db)
}
