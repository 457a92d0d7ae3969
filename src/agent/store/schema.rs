//! The device's schema, its facts, and how columns are read.

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row};

use super::{Credentials, networks};
use crate::proto::MessageId;
use crate::proto::ids::IdError;
use crate::world;

/// The schema, step by step. A published step is never changed.
pub const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
    -- reg_id: as long as the app is registered. wish: what the server has still to be asked for.
    CREATE TABLE apps (
        app    TEXT PRIMARY KEY,
        uid    INTEGER NOT NULL,
        reg_id TEXT,
        wish   TEXT CHECK (wish IN ('register', 'deregister'))
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE unread (
        place       INTEGER PRIMARY KEY AUTOINCREMENT,
        app         TEXT NOT NULL,
        received_ms INTEGER NOT NULL,
        expires_ms  INTEGER NOT NULL,
        dropped     INTEGER NOT NULL,
        body        TEXT NOT NULL
    ) STRICT;
    CREATE INDEX unread_by_app ON unread (app, place);
    CREATE TABLE seen (
        place      INTEGER PRIMARY KEY AUTOINCREMENT,
        id         BLOB NOT NULL UNIQUE,
        forget_ms  INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE outcomes (
        id    BLOB PRIMARY KEY,
        fate  TEXT NOT NULL,
        at_ms INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
",
    "
    -- flatpak: the sandbox of who claimed the app. installed: a file of the app that was seen, or '' if
    -- only the bus knew it; gone: it was there and is not any more: its
    -- place among those that went. connected: also after the daemon's
    -- end, as the app will come back. launch_type, launch_id: why the daemon started it last.
    ALTER TABLE apps ADD COLUMN flatpak TEXT;
    ALTER TABLE apps ADD COLUMN installed TEXT;
    ALTER TABLE apps ADD COLUMN gone INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE apps ADD COLUMN connected INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE apps ADD COLUMN enabled INTEGER NOT NULL DEFAULT 1;
    ALTER TABLE apps ADD COLUMN alerts INTEGER NOT NULL DEFAULT 1;
    ALTER TABLE apps ADD COLUMN launch INTEGER NOT NULL DEFAULT 1;
    ALTER TABLE apps ADD COLUMN show_badge INTEGER NOT NULL DEFAULT 1;
    ALTER TABLE apps ADD COLUMN badge INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE apps ADD COLUMN launch_type TEXT;
    ALTER TABLE apps ADD COLUMN launch_id BLOB;
    -- planned: what the message asks for has been decided as for an app that is away.
    ALTER TABLE unread ADD COLUMN id BLOB;
    ALTER TABLE unread ADD COLUMN request_id TEXT;
    ALTER TABLE unread ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE unread ADD COLUMN planned INTEGER NOT NULL DEFAULT 0;
    UPDATE unread SET id = unhex(replace(body ->> '$.id', '-', '')), bytes = octet_length(body),
                      request_id = body ->> '$.request_id';
    -- delivered: the app was given it, and nothing that was to take its place.
    ALTER TABLE seen ADD COLUMN delivered INTEGER NOT NULL DEFAULT 0;
    -- A message's life may have several steps that the server is told.
    ALTER TABLE outcomes RENAME TO old_outcomes;
    CREATE TABLE outcomes (
        place INTEGER PRIMARY KEY AUTOINCREMENT,
        id    BLOB NOT NULL,
        fate  TEXT NOT NULL,
        at_ms INTEGER NOT NULL,
        UNIQUE (id, fate)
    ) STRICT;
    INSERT INTO outcomes (id, fate, at_ms) SELECT id, fate, at_ms FROM old_outcomes ORDER BY at_ms;
    DROP TABLE old_outcomes;
    -- Queues are measured without a look at the messages.
    CREATE INDEX unread_sizes ON unread (app, bytes);
    CREATE UNIQUE INDEX unread_by_id ON unread (id);
    CREATE INDEX unread_unplanned ON unread (app) WHERE NOT planned;
    -- What messages have still to bring about. id: the message; none for a changed registration.
    -- process: what was started and may be running already.
    CREATE TABLE effects (
        place   INTEGER PRIMARY KEY AUTOINCREMENT,
        app     TEXT NOT NULL,
        kind    TEXT NOT NULL,
        id      BLOB,
        token   TEXT,
        process TEXT
    ) STRICT;
    CREATE INDEX effects_by_id ON effects (id);
    -- Alerts on the screen, each by the newest message it shows. server: who shows it. topic: what
    -- a newer alert replaces it by. more: how many older messages it stands for.
    CREATE TABLE alerts (
        id           BLOB PRIMARY KEY,
        app          TEXT NOT NULL,
        notification INTEGER NOT NULL,
        server       TEXT NOT NULL,
        topic        TEXT,
        more         INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX alerts_by_app ON alerts (app);
    CREATE INDEX alerts_by_number ON alerts (notification, server);
    -- The last messages, and what became of them. place: that of `seen`.
    CREATE TABLE history (
        place       INTEGER PRIMARY KEY,
        id          BLOB NOT NULL UNIQUE,
        app         TEXT NOT NULL,
        request_id  TEXT,
        accepted_ms INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE hops (
        place INTEGER NOT NULL,
        at_ms INTEGER NOT NULL,
        hop   TEXT NOT NULL,
        why   TEXT
    ) STRICT;
    CREATE INDEX hops_by_place ON hops (place);
",
    "
    -- not_kept: why the push is not on this disk, if it is not.
    ALTER TABLE seen ADD COLUMN not_kept TEXT CHECK (not_kept IN ('expired', 'unwanted'));
",
    "
    -- learned: how long a connection over the network may be silent, as JSON. key: a salted hash.
    CREATE TABLE networks (
        key        BLOB PRIMARY KEY,
        learned    TEXT NOT NULL,
        learned_ms INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
",
    "
    -- endpoint: where application servers send to it, if it is a Web Push channel.
    ALTER TABLE apps ADD COLUMN endpoint TEXT;
    -- Registrations of apps that speak UnifiedPush. app: the channel of each. version: of the interface
    -- that the app speaks. asked: how often it has registered. told: the endpoint it was told since.
    -- farewell: it has still to be told that the registration ended, as it asked or not. refused: why
    -- the server gives no endpoint for now. bus: the one that gave a service its unique name. launch: whether
    -- the app could be started when its registration ended.
    CREATE TABLE channels (
        place       INTEGER PRIMARY KEY AUTOINCREMENT,
        token       TEXT NOT NULL UNIQUE,
        app         TEXT NOT NULL UNIQUE,
        service     TEXT NOT NULL,
        version     INTEGER NOT NULL CHECK (version IN (1, 2)),
        description TEXT NOT NULL,
        asked       INTEGER NOT NULL DEFAULT 1,
        told        TEXT,
        farewell    TEXT CHECK (farewell IN ('asked', 'revoked')),
        refused     TEXT,
        bus         TEXT,
        launch      INTEGER NOT NULL DEFAULT 1
    ) STRICT;
    CREATE INDEX channels_by_service ON channels (service);
",
];

pub type Result<T, E = rusqlite::Error> = std::result::Result<T, E>;

pub fn credentials(db: &Connection) -> Result<Credentials> {
    if let (Some(device), Some(secret)) = (fact(db, "device")?, fact(db, "secret")?) {
        return Ok(Credentials { device: parse(&device)?, secret: parse(&secret)? });
    }
    let (device, secret) = (world::device_id(), world::secret());
    let step = db.unchecked_transaction()?;
    set_fact(&step, "device", &device.to_string())?;
    set_fact(&step, "secret", &hex::encode(secret.reveal()))?;
    networks::salt(&step)?;
    step.commit()?;
    Ok(Credentials { device, secret })
}

pub fn fact(db: &Connection, name: &str) -> Result<Option<String>> {
    db.query_row("SELECT value FROM facts WHERE name = ?1", [name], |row| row.get(0)).optional()
}

pub fn set_fact(db: &Connection, name: &str, value: &str) -> Result<()> {
    db.execute("INSERT INTO facts VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value = ?2", [name, value])?;
    Ok(())
}

/// A column whose text has a type of its own.
pub fn text<T: std::str::FromStr<Err = IdError>>(row: &Row<'_>, column: usize) -> Result<T> {
    parse(row.get_ref(column)?.as_str()?)
}

pub fn parse<T: std::str::FromStr<Err = IdError>>(text: &str) -> Result<T> {
    text.parse().map_err(|error: T::Err| rusqlite::Error::FromSqlConversionFailure(0, Type::Text, error.into()))
}

/// A column with a message's id.
pub fn id(row: &Row<'_>, column: usize) -> Result<MessageId> {
    to_id(column, row.get_ref(column)?.as_blob()?)
}

/// A column with a message's id, or nothing.
pub fn id_or_none(row: &Row<'_>, column: usize) -> Result<Option<MessageId>> {
    row.get_ref(column)?.as_blob_or_null()?.map(|bytes| to_id(column, bytes)).transpose()
}

fn to_id(column: usize, bytes: &[u8]) -> Result<MessageId> {
    MessageId::from_slice(bytes)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(column, Type::Blob, error.into()))
}

/// A column with JSON of a type of its own.
pub fn json<T: serde::de::DeserializeOwned>(row: &Row<'_>, column: usize) -> Result<T> {
    serde_json::from_str(row.get_ref(column)?.as_str()?)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, error.into()))
}

pub fn to_json(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}
