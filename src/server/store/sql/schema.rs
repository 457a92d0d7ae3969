//! The server's tables. A published step is never changed; a new one is only ever added.

/// What the file says of itself: see the schema.
pub const APPLICATION: i64 = 1_113_027_446;

/// The schema, step by step. A published step is never changed.
pub const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE keys (
        number     INTEGER PRIMARY KEY,
        purpose    TEXT NOT NULL CHECK (purpose IN ('seal', 'shard')),
        secret     BLOB NOT NULL,
        created_ms INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE apps (
        app         TEXT PRIMARY KEY,
        secret_hash BLOB NOT NULL,
        created_ms  INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE devices (
        device      BLOB PRIMARY KEY,
        secret_hash BLOB NOT NULL,
        agent       TEXT NOT NULL,
        enrolled_ms INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    -- A registration that ended keeps its row, so that its generation is never used again.
    -- 'revoked': ended by the server, not yet confirmed by the device.
    CREATE TABLE registrations (
        device     BLOB NOT NULL,
        app        TEXT NOT NULL,
        generation INTEGER NOT NULL,
        state      TEXT NOT NULL CHECK (state IN ('active', 'ended', 'revoked')),
        changed_ms INTEGER NOT NULL,
        PRIMARY KEY (device, app)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX registrations_by_app ON registrations (app, state);
    -- dropped: messages of the same registration that had to go before this one.
    CREATE TABLE messages (
        seq        INTEGER PRIMARY KEY,
        device     BLOB NOT NULL,
        app        TEXT NOT NULL,
        expires_ms INTEGER NOT NULL,
        dropped    INTEGER NOT NULL DEFAULT 0,
        body       TEXT NOT NULL
    ) STRICT;
    CREATE INDEX messages_by_device ON messages (device, seq, app);
    CREATE INDEX messages_by_expiry ON messages (expires_ms);
",
    "
    -- id, request_id: as sender and device know it. replaces: the ids of messages whose place it has
    -- taken and that may be on their way, 16 bytes each. held: not to be sent while it is found out
    -- whether it can be taken back.
    ALTER TABLE messages ADD COLUMN id BLOB;
    ALTER TABLE messages ADD COLUMN request_id TEXT;
    ALTER TABLE messages ADD COLUMN replaces BLOB NOT NULL DEFAULT x'';
    ALTER TABLE messages ADD COLUMN held INTEGER NOT NULL DEFAULT 0;
    UPDATE messages SET id = unhex(replace(body ->> '$.id', '-', '')), request_id = body ->> '$.request_id';
    DROP INDEX messages_by_device;
    CREATE INDEX messages_by_device ON messages (device, seq, app, request_id);
    CREATE INDEX messages_held ON messages (seq) WHERE held;
    CREATE TABLE delayed (
        place      INTEGER PRIMARY KEY AUTOINCREMENT,
        device     BLOB NOT NULL,
        app        TEXT NOT NULL,
        request_id TEXT,
        release_ms INTEGER NOT NULL,
        expires_ms INTEGER NOT NULL,
        id         BLOB NOT NULL UNIQUE,
        replaces   BLOB NOT NULL,
        body       TEXT NOT NULL
    ) STRICT;
    CREATE INDEX delayed_by_time ON delayed (release_ms, place);
    CREATE INDEX delayed_by_device ON delayed (device, app, request_id);
    -- seq: its place in `messages`, if it is or was there. fate, ended_ms: how it ended.
    CREATE TABLE history (
        id          BLOB PRIMARY KEY,
        app         TEXT NOT NULL,
        device      BLOB NOT NULL,
        reg_id      BLOB NOT NULL,
        request_id  TEXT,
        seq         INTEGER,
        accepted_ms INTEGER NOT NULL,
        stored_ms   INTEGER NOT NULL,
        release_ms  INTEGER,
        expires_ms  INTEGER NOT NULL,
        sent_ms     INTEGER,
        acked_ms    INTEGER,
        alerted_ms  INTEGER,
        launched_ms INTEGER,
        fate        TEXT,
        ended_ms    INTEGER
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX history_by_request ON history (app, request_id);
    -- Where an app's receipts go; the key signs them.
    ALTER TABLE apps ADD COLUMN callback_url TEXT;
    ALTER TABLE apps ADD COLUMN callback_key BLOB;
    CREATE TABLE receipts (
        place   INTEGER PRIMARY KEY AUTOINCREMENT,
        app     TEXT NOT NULL,
        made_ms INTEGER NOT NULL,
        body    TEXT NOT NULL
    ) STRICT;
    CREATE INDEX receipts_by_app ON receipts (app, place);
",
    "
    -- old_secret_hash: of the secret before this one, which works until old_until_ms.
    ALTER TABLE apps ADD COLUMN old_secret_hash BLOB;
    ALTER TABLE apps ADD COLUMN old_until_ms INTEGER NOT NULL DEFAULT 0;
    -- seen_ms: when the device greeted last, to the day. fresh: it has registered nothing since it
    -- was enrolled, or since the database was restored, and is told so.
    ALTER TABLE devices ADD COLUMN seen_ms INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE devices ADD COLUMN fresh INTEGER NOT NULL DEFAULT 1;
    UPDATE devices SET seen_ms = unixepoch() * 1000,
        fresh = NOT EXISTS (SELECT 1 FROM registrations r WHERE r.device = devices.device);
    CREATE INDEX devices_by_seen ON devices (seen_ms);
    -- What there is one of. generation-floor: no registration begins with a lower generation.
    CREATE TABLE facts (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    -- Says of the file what it is: 'BWsv'.
    PRAGMA application_id = 1113027446;
",
    "
    -- Of operators' programs.
    CREATE TABLE tokens (
        name       TEXT PRIMARY KEY,
        hash       BLOB NOT NULL,
        created_ms INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    -- What is written to see whether anything can be: one row, as large as a message may be.
    CREATE TABLE trial (
        id   INTEGER PRIMARY KEY CHECK (id = 1),
        body BLOB NOT NULL
    ) STRICT;
",
    "
    -- broker_hash: the device's password at an MQTT broker, as mosquitto stores it.
    ALTER TABLE devices ADD COLUMN broker_hash TEXT;
",
    "
    -- urgency: by number, 2 is normal. waits_ms: until then it waits for a frame of an idle device.
    ALTER TABLE messages ADD COLUMN urgency INTEGER NOT NULL DEFAULT 2;
    ALTER TABLE messages ADD COLUMN waits_ms INTEGER NOT NULL DEFAULT 0;
    UPDATE messages SET urgency = CASE body ->> '$.urgency' WHEN 'very-low' THEN 0 WHEN 'low' THEN 1 ELSE 3 END
        WHERE body ->> '$.urgency' IS NOT NULL;
    -- Has all that decides which messages may go: none that may not is looked at itself.
    DROP INDEX messages_by_device;
    CREATE INDEX messages_by_device ON messages (device, seq, app, request_id, urgency, waits_ms, held);
",
    "
    -- What senders of Web Push are told of their messages, by their subscription. status: 204 or 410.
    CREATE TABLE confirmations (
        place   INTEGER PRIMARY KEY AUTOINCREMENT,
        link    BLOB NOT NULL,
        made_ms INTEGER NOT NULL,
        status  INTEGER NOT NULL,
        message TEXT NOT NULL
    ) STRICT;
    CREATE INDEX confirmations_by_link ON confirmations (link, place);
    -- Subscriptions that messages may still name although their senders have ended them.
    CREATE TABLE ended_links (
        link     BLOB PRIMARY KEY,
        ended_ms INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX ended_links_by_time ON ended_links (ended_ms);
    -- Whose Web Push messages are told in the app's callback: the point, and its SHA-256.
    ALTER TABLE apps ADD COLUMN vapid_key BLOB;
    ALTER TABLE apps ADD COLUMN vapid_hash BLOB;
    CREATE UNIQUE INDEX apps_by_vapid ON apps (vapid_hash) WHERE vapid_hash IS NOT NULL;
    -- link: the subscription of receipts that the message names.
    ALTER TABLE history ADD COLUMN link BLOB;
    -- Channels that ended, which are forgotten after a while.
    CREATE INDEX registrations_ended ON registrations (changed_ms) WHERE state = 'ended' AND app GLOB 'webpush:*';
",
];
