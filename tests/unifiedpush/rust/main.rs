//! An app on UnifiedPush's own connector for Rust: it writes down, a line of JSON each, when it was started
//! and what the connector tells it, and ends when nothing comes for a while.
//!
//!     unifiedpush-app SERVICE LOG [IDLE-SECONDS]
//!
//! Lines on its standard input are commands: `register INSTANCE` and `unregister INSTANCE`. What it must keep
//! is in `~/.config/SERVICE`. Nothing of Bellwire's code is used here.

use std::fs::OpenOptions;
use std::io::{BufRead, Write};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use unifiedpush::{PushEvent, PushMessage, UnifiedPush};
use unifiedpush_storage_preferences::UnifiedPushStoragePreferences;
use unifiedpush_storage_preferences::preferences::AppInfo;

const AUTHOR: &str = "bellwire";

fn note(log: &str, line: Value) {
    let mut file = OpenOptions::new().create(true).append(true).open(log).expect("the log is the test's");
    writeln!(file, "{line}").expect("the log is the test's");
}

fn describe(event: PushEvent) -> Value {
    match event {
        PushEvent::NewEndpoint { instance, endpoint } => {
            json!({ "event": "NewEndpoint", "token": instance, "endpoint": endpoint.endpoint })
        }
        PushEvent::Message { instance, message } => {
            let (PushMessage::Decrypted { content } | PushMessage::Raw { content }) = message;
            let hex: String = content.iter().map(|byte| format!("{byte:02x}")).collect();
            json!({ "event": "Message", "token": instance, "message": hex })
        }
        PushEvent::Unregistered { instance } => json!({ "event": "Unregistered", "token": instance }),
        PushEvent::Abort => json!({ "event": "Abort" }),
    }
}

async fn obey(app: &UnifiedPush, line: &str, log: &str) {
    let (command, instance) = line.split_once(' ').expect("a command has two words");
    if command == "register" {
        assert!(app.try_use_default_distributor().await, "there is exactly one distributor");
        app.register(instance, Some("a connector of another hand"), None).await;
    } else {
        app.unregister(instance).await;
    }
    note(log, json!({ "event": "obeyed", "command": command }));
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let (service, log) = (&arguments[1], &arguments[2]);
    let idle = arguments.get(3).map_or(3600, |text| text.parse().expect("seconds"));
    note(log, json!({ "event": "started" }));
    // The storage keeps the name for as long as it lives, which is as long as the program.
    let name: &'static str = Box::leak(service.clone().into_boxed_str());
    let storage = UnifiedPushStoragePreferences::new(AppInfo { name, author: AUTHOR });
    let (sender, mut events) = mpsc::unbounded_channel();
    let (lines, mut commands) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if lines.send(line).is_err() {
                return;
            }
        }
        std::thread::park();
    });
    // The connector blocks the threads that it is called on; it is given others.
    let runtime = Box::leak(Box::new(Runtime::new().expect("there are threads")));
    let app = UnifiedPush::new(service, storage, sender, runtime.handle().clone()).await.expect("the bus is there");
    loop {
        tokio::select! {
            Some(event) = events.recv() => note(log, describe(event)),
            Some(line) = commands.recv() => obey(&app, &line, log).await,
            () = tokio::time::sleep(Duration::from_secs(idle)) => break,
        }
    }
    note(log, json!({ "event": "ended" }));
}
