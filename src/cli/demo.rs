//! `bellwire demo`: the main job before your eyes, with the real programs.
//!
//! Two servers (regions 00 and 03), two devices, each with a private bus, an agent and an app that
//! has one app id on both. Single, multiple and multicast notifications over HTTP; an app that
//! goes away and comes back; a server that is stopped and started again. Every expected delivery
//! is waited for; one that is missing fails the demo.

use serde_json::{Value, json};

use super::Output;
use super::lab::{self, AppProcess, DeviceProcess, Lab, ServerProcess, free_port};
use crate::daemon::{Exit, Fatal};
use crate::http::HttpClient;
use crate::server::doors::tizen::PATH;
use crate::tls;
use crate::world;

const APP: &str = "1234567890987654";
const SECRET: &str = "demo-secret-of-20-bytes";

/// What runs.
struct Demo {
    output: Output,
    http: HttpClient,
    servers: [ServerProcess; 2],
    devices: [DeviceProcess; 2],
    /// One app on each device; `None` while it is away.
    apps: [Option<AppProcess>; 2],
    reg_ids: [String; 2],
    requests: u32,
    seen: u32,
}

/// One POST, and when it was sent and answered.
struct Posted {
    request_ids: Vec<String>,
    sent_ms: i64,
    answered_ms: i64,
    codes: Vec<i64>,
}

/// Runs the demo.
pub async fn demo(output: Output) -> Result<(), Fatal> {
    let lab = Lab::new("debug")?;
    show(&lab, output).await.inspect_err(|_| eprint!("What the programs said last:\n{}", lab.said()))
}

async fn show(lab: &Lab, output: Output) -> Result<(), Fatal> {
    let mut demo = Demo::start(lab, output).await?;
    demo.single().await?;
    demo.multiple().await?;
    demo.multicast().await?;
    demo.app_away().await?;
    demo.server_away().await?;
    let seen = demo.finish().await?;
    output.print(&json!({ "event": "done", "deliveries": seen }), || {
        format!("\nAll {seen} expected deliveries were seen, each once. Try it yourself:\n{}", by_hand())
    });
    Ok(())
}

impl Demo {
    async fn start(lab: &Lab, output: Output) -> Result<Self, Fatal> {
        let ports = [free_port()?, free_port()?];
        let other = |region: &str, port: u16| format!("[regions]\n\"{region}\" = \"http://127.0.0.1:{port}\"\n");
        let mut servers = [
            lab.server("00", ports[0], free_port()?, None, &other("03", ports[1]))?,
            lab.server("03", ports[1], free_port()?, None, &other("00", ports[0]))?,
        ];
        for (server, region) in servers.iter_mut().zip(["00", "03"]) {
            server.start().await?;
            server.add_app(APP, SECRET).await?;
            output.print(
                &json!({ "event": "server", "region": region, "api": server.api, "gateway": server.gateway }),
                || format!("server {region}   API {}   gateway {}", server.api, server.gateway),
            );
        }
        let agent = lab::sibling("bellwired")?;
        let devices = [
            lab.device("a", agent.clone(), &servers[0].gateway, "").await?,
            lab.device("b", agent, &servers[1].gateway, "").await?,
        ];
        let apps = [devices[0].app(APP).await?, devices[1].app(APP).await?];
        let reg_ids = [apps[0].reg_id.clone(), apps[1].reg_id.clone()];
        for (name, reg_id) in ["a", "b"].iter().zip(&reg_ids) {
            output.print(&json!({ "event": "registered", "device": name, "reg_id": reg_id }), || {
                format!("device {name}    enrolled, app {APP} registered: {}..", &reg_id[..12])
            });
        }
        let http = HttpClient::new(&tls::client(None).map_err(Fatal::of(Exit::Config))?);
        Ok(Self { output, http, servers, devices, apps: apps.map(Some), reg_ids, requests: 0, seen: 0 })
    }

    async fn single(&mut self) -> Result<(), Fatal> {
        self.title("A single notification, to region 00");
        let request = self.message(json!(self.reg_ids[0]), "hello");
        let posted = self.post(0, request, 1).await?;
        self.expect(0, &posted, 0).await
    }

    async fn multiple(&mut self) -> Result<(), Fatal> {
        self.title("Two different notifications in one request to region 00; the second is region 03's");
        let messages = [self.message(json!(self.reg_ids[0]), "for a"), self.message(json!(self.reg_ids[1]), "for b")];
        let posted = self.post(0, json!({ "messages": messages }), 2).await?;
        self.expect(0, &posted, 0).await?;
        self.expect(1, &posted, 1).await
    }

    async fn multicast(&mut self) -> Result<(), Fatal> {
        self.title("A multicast to both devices, posted to region 03");
        let message = self.message(json!(self.reg_ids), "for both");
        let posted = self.post(1, json!({ "messages": [message] }), 2).await?;
        self.expect(0, &posted, 0).await?;
        self.expect(1, &posted, 0).await
    }

    async fn app_away(&mut self) -> Result<(), Fatal> {
        self.title("The app on device a is away while two notifications come; then it is back");
        if let Some(app) = self.apps[0].take() {
            app.stop().await?;
        }
        let mut posts = Vec::new();
        for text in ["first while away", "second while away"] {
            let request = self.message(json!(self.reg_ids[0]), text);
            posts.push(self.post(0, request, 1).await?);
        }
        self.apps[0] = Some(self.devices[0].app(APP).await?);
        for posted in &posts {
            self.expect(0, posted, 0).await?;
        }
        Ok(())
    }

    async fn server_away(&mut self) -> Result<(), Fatal> {
        self.title("Server 03 is stopped: a multicast reaches device a, and device b's region fails with 3015");
        self.servers[1].stop().await?;
        let message = self.message(json!(self.reg_ids), "while 03 is down");
        let posted = self.post(0, json!({ "messages": [message] }), 2).await?;
        if posted.codes != [1000, 3015] {
            return Err(Fatal::new(Exit::Failure, format!("the answer was {:?}", posted.codes)));
        }
        self.expect(0, &posted, 0).await?;
        self.title("Server 03 is started again: it takes a notification, and device b comes back for it");
        self.servers[1].start().await?;
        let request = self.message(json!(self.reg_ids[1]), "after the restart");
        let posted = self.post(1, request, 1).await?;
        self.expect(1, &posted, 0).await?;
        self.title("A last one to each, through the other region");
        for (device, server) in [(0, 1), (1, 0)] {
            let request = self.message(json!(self.reg_ids[device]), "goodbye");
            let posted = self.post(server, request, 1).await?;
            self.expect(device, &posted, 0).await?;
        }
        Ok(())
    }

    /// Ends the apps, which must have nothing more to say; returns how many deliveries were seen.
    async fn finish(mut self) -> Result<u32, Fatal> {
        for app in self.apps.iter_mut().filter_map(Option::take) {
            if let Some(more) = app.stop().await? {
                return Err(Fatal::new(Exit::Failure, format!("an unexpected delivery came: {more}")));
            }
        }
        Ok(self.seen)
    }

    fn title(&self, text: &str) {
        self.output.print(&json!({ "event": "step", "text": text }), || format!("\n{text}"));
    }

    fn message(&mut self, reg_id: Value, text: &str) -> Value {
        self.requests += 1;
        json!({ "regID": reg_id, "requestID": format!("{:07}", self.requests), "sender": "demo", "appData": text,
                "message": "badgeOption=INCREASE&badgeNumber=1&action=ALERT&alertMessage=Hi" })
    }

    async fn post(&self, server: usize, body: Value, recipients: usize) -> Result<Posted, Fatal> {
        let url = format!("{}{PATH}", self.servers[server].api);
        let sent_ms = world::now().0;
        let (_, answer) = self
            .http
            .post(&url, &[("appID", APP), ("appSecret", SECRET)], body.to_string())
            .await
            .map_err(Fatal::of(Exit::Unavailable))?;
        let answered_ms = world::now().0;
        let answer: Value = serde_json::from_slice(&answer).map_err(Fatal::of(Exit::Software))?;
        let results = answer["results"].as_array().cloned().unwrap_or_default();
        let mut request_ids: Vec<String> =
            results.iter().map(|result| result["requestID"].as_str().unwrap_or_default().to_owned()).collect();
        request_ids.dedup();
        let codes: Vec<i64> = results.iter().filter_map(|result| result["statusCode"].as_i64()).collect();
        if codes.len() != recipients || codes[0] != 1000 {
            return Err(Fatal::new(Exit::Failure, format!("the server answered {answer}")));
        }
        Ok(Posted { request_ids, sent_ms, answered_ms, codes })
    }

    /// Waits for a message of the post on a device and prints its way.
    async fn expect(&mut self, device: usize, posted: &Posted, message: usize) -> Result<(), Fatal> {
        let name = ["a", "b"][device];
        let missing = || Fatal::new(Exit::Failure, format!("the app on device {name} is away"));
        let seen = self.apps[device].as_mut().ok_or_else(missing)?.next().await?;
        if seen["request_id"] != posted.request_ids[message].as_str() {
            return Err(Fatal::new(Exit::Failure, format!("device {name} got another message: {seen}")));
        }
        self.seen += 1;
        let at = |member: &str| seen[member].as_i64().unwrap_or_default() - posted.sent_ms;
        let hops = json!({ "event": "delivered", "device": name, "id": seen["id"], "request_id": seen["request_id"],
                           "app_data": seen["app_data"], "hops_ms": {
                               "accepted": at("accepted_ms"), "answered": posted.answered_ms - posted.sent_ms,
                               "on_device": at("received_ms"), "delivered": at("delivered_ms") } });
        self.output.print(&hops, || {
            format!(
                "  {} \"{}\" to device {name}\n    posted 0 -> accepted {} ms -> answered 1000 {} ms (on the server's disk) \
                 -> {} ms (on the device's disk) -> app {} ms",
                seen["request_id"].as_str().unwrap_or_default(),
                seen["app_data"].as_str().unwrap_or_default(),
                at("accepted_ms"),
                posted.answered_ms - posted.sent_ms,
                at("received_ms"),
                at("delivered_ms"),
            )
        });
        Ok(())
    }
}

/// The same by hand, with the default configuration.
fn by_hand() -> String {
    let folder = std::env::current_exe().ok().and_then(|path| path.parent().map(|folder| folder.display().to_string()));
    let folder = folder.unwrap_or_else(|| ".".into());
    format!(
        "  export PATH=\"{folder}:$PATH\"\n\
         \x20 dbus-run-session -- bash                    # only where there is no session bus\n\
         \x20 bellwire-server & sleep 1                   # API on 8090, gateway on 5223\n\
         \x20 bellwire-server app add {APP}    # prints the secret, once\n\
         \x20 bellwired & sleep 1\n\
         \x20 bellwire listen {APP} &          # prints the regId, then messages\n\
         \x20 bellwire status\n\
         \x20 curl http://127.0.0.1:8090{PATH} -H 'appID: {APP}' -H 'appSecret: SECRET' \\\n\
         \x20      -d '{{\"regID\": \"REGID\", \"requestID\": \"1\", \"appData\": \"hello\"}}'"
    )
}
