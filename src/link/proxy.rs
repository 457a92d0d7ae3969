//! Proxies between a device and its gateway: whether there is one, and the tunnel through it (CONNECT of
//! HTTP/1.1, RFC 9110 section 9.3.6).
//!
//! Only encrypted links to other machines go through one. The proxy resolves the gateway's name, and is told
//! nothing else. What it answers is read within limits, and its password is shown nowhere.

use std::fmt;
use std::io::{Error, ErrorKind};
use std::net::IpAddr;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_tungstenite::tungstenite::http::{StatusCode, Uri};

use super::Gateway;

/// The longest answer of a proxy, in bytes.
const ANSWER_MAX: usize = 8 * 1024;
/// The most lines of it.
const LINES_MAX: usize = 64;
/// The port of a proxy that names none, as curl has it.
const PORT: u16 = 1080;

/// A proxy: `http://[USER:PASSWORD@]HOST[:PORT]`.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    host: String,
    port: u16,
    /// User and password as they are sent, if there are any.
    credentials: Option<String>,
}

/// A text that is no proxy, which it does not repeat: there may be a password in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a proxy is http://[USER:PASSWORD@]HOST[:PORT]")]
pub struct ProxyError;

impl Proxy {
    /// Where it listens.
    pub fn address(&self) -> (&str, u16) {
        (&self.host, self.port)
    }
}

impl FromStr for Proxy {
    type Err = ProxyError;

    fn from_str(text: &str) -> Result<Self, ProxyError> {
        let text = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let uri: Uri = text.parse().map_err(|_| ProxyError)?;
        let authority = uri.authority().ok_or(ProxyError)?;
        let bare = uri.path() == "/" && uri.query().is_none();
        if uri.scheme_str() != Some("http") || !bare || authority.host().is_empty() {
            return Err(ProxyError);
        }
        let user = authority.as_str().rsplit_once('@').map(|(user, _)| user);
        let encode = |user: &str| {
            let (name, password) = user.split_once(':').unwrap_or((user, ""));
            let plain = |part| percent_decode_str(part).collect::<Vec<u8>>();
            STANDARD.encode([plain(name), plain(password)].join(&b':'))
        };
        Ok(Self {
            host: authority.host().trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: authority.port_u16().unwrap_or(PORT),
            credentials: user.map(encode),
        })
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(out, "http://[{}]:{}", self.host, self.port),
            false => write!(out, "http://{}:{}", self.host, self.port),
        }
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

/// What the configuration says of proxies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Setting {
    /// What the environment says.
    #[default]
    Environment,
    /// There is none.
    None,
    /// This one.
    Proxy(Proxy),
}

impl TryFrom<String> for Setting {
    type Error = ProxyError;

    fn try_from(text: String) -> Result<Self, ProxyError> {
        match text.as_str() {
            "" | "none" => Ok(Self::None),
            text => Ok(Self::Proxy(text.parse()?)),
        }
    }
}

/// Which links go through which proxy.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    proxy: Option<Proxy>,
    exempt: Vec<Exempt>,
}

/// To what no proxy is used.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Exempt {
    All,
    /// A name and those below it.
    Name(String),
    Net(IpNet),
}

impl Proxies {
    /// None at all.
    pub fn none() -> Self {
        Self::default()
    }

    /// What the setting says, or else the environment, in the variables that curl knows. The error names the
    /// variable whose proxy is none.
    pub fn new(setting: &Setting, variable: impl Fn(&str) -> Option<String>) -> Result<Self, &'static str> {
        // As for curl, one that is empty is none.
        let variable = |name: &str| variable(name).filter(|text| !text.is_empty());
        let exempt = ["no_proxy", "NO_PROXY"].into_iter().find_map(variable).unwrap_or_default();
        let proxy = match setting {
            Setting::None => None,
            Setting::Proxy(proxy) => Some(proxy.clone()),
            Setting::Environment => {
                let names = ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];
                let named = names.into_iter().find_map(|name| Some((name, variable(name)?)));
                named.map(|(name, text)| text.parse().map_err(|_| name)).transpose()?
            }
        };
        Ok(Self {
            proxy,
            exempt: exempt.split(|c: char| c == ',' || c.is_whitespace()).filter_map(Exempt::of).collect(),
        })
    }

    /// The proxy on the way to this gateway.
    pub fn of(&self, gateway: &Gateway) -> Option<&Proxy> {
        let host = gateway.host().trim_end_matches('.').to_ascii_lowercase();
        let address: Option<IpAddr> = host.parse().ok();
        let here = host == "localhost" || address.is_some_and(|address| address.is_loopback());
        let direct = !gateway.encrypted() || here || self.exempt.iter().any(|exempt| exempt.holds(&host, address));
        self.proxy.as_ref().filter(|_| !direct)
    }
}

impl Exempt {
    fn of(text: &str) -> Option<Self> {
        let text = text.trim_matches(['.', '[', ']']);
        match text {
            "" => None,
            "*" => Some(Self::All),
            text => Some(match (text.parse::<IpNet>(), text.parse::<IpAddr>()) {
                (Ok(net), _) => Self::Net(net),
                (_, Ok(address)) => Self::Net(address.into()),
                _ => Self::Name(text.to_ascii_lowercase()),
            }),
        }
    }

    fn holds(&self, host: &str, address: Option<IpAddr>) -> bool {
        match self {
            Self::All => true,
            Self::Name(name) => host.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')),
            Self::Net(net) => address.is_some_and(|address| net.contains(&address)),
        }
    }
}

/// Why a proxy gives no tunnel.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// It wants to know who asks, or does not believe it.
    #[error("the proxy {0} wants another user and password: it answered {1}")]
    Unauthorized(Proxy, StatusCode),
    /// It does not connect to there, or cannot.
    #[error("the proxy {proxy} does not connect to {gateway}: it answered {status}")]
    Refused {
        /// Which proxy.
        proxy: Proxy,
        /// To where.
        gateway: Box<Gateway>,
        /// What it answered.
        status: StatusCode,
    },
    /// Its answer makes no sense.
    #[error("{0} answers, but is no HTTP proxy")]
    NoProxy(Proxy),
    /// The connection to it broke.
    #[error("the proxy {0}: {1}")]
    Broken(Proxy, Error),
}

/// Has the proxy at the other end of the stream connect it to the gateway.
pub async fn tunnel<S>(stream: &mut S, proxy: &Proxy, gateway: &Gateway) -> Result<(), TunnelError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let broken = |error| TunnelError::Broken(proxy.clone(), error);
    stream.write_all(request(proxy, gateway).as_bytes()).await.map_err(broken)?;
    let mut answer = Vec::new();
    let status = loop {
        if answer.len() >= ANSWER_MAX {
            return Err(TunnelError::NoProxy(proxy.clone()));
        }
        let mut piece = [0; 512];
        let count = stream.read(&mut piece).await.map_err(broken)?;
        if count == 0 {
            return Err(broken(ErrorKind::UnexpectedEof.into()));
        }
        answer.extend_from_slice(&piece[..count]);
        if let Some(status) = status(&answer).ok_or_else(|| TunnelError::NoProxy(proxy.clone()))? {
            break status;
        }
    };
    match status {
        status if status.is_success() => Ok(()),
        // Some say the one where the other is meant.
        status @ (StatusCode::PROXY_AUTHENTICATION_REQUIRED | StatusCode::UNAUTHORIZED) => {
            Err(TunnelError::Unauthorized(proxy.clone(), status))
        }
        status => Err(TunnelError::Refused { proxy: proxy.clone(), gateway: Box::new(gateway.clone()), status }),
    }
}

fn request(proxy: &Proxy, gateway: &Gateway) -> String {
    let to = match gateway.host().contains(':') {
        true => format!("[{}]:{}", gateway.host(), gateway.port()),
        false => format!("{}:{}", gateway.host(), gateway.port()),
    };
    let credentials = proxy.credentials.as_ref().map(|basic| format!("Proxy-Authorization: Basic {basic}\r\n"));
    format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n{}\r\n", credentials.unwrap_or_default())
}

/// The status of an answer, `Some(None)` if there is more to come, `None` if it is none. One that opens the
/// tunnel ends with its head: in TLS the gateway does not speak first.
fn status(answer: &[u8]) -> Option<Option<StatusCode>> {
    let mut lines = [httparse::EMPTY_HEADER; LINES_MAX];
    let mut response = httparse::Response::new(&mut lines);
    let httparse::Status::Complete(head) = response.parse(answer).ok()? else { return Some(None) };
    let status = StatusCode::from_u16(response.code?).ok()?;
    if status.is_informational() {
        return self::status(answer.get(head..).unwrap_or_default());
    }
    (!status.is_success() || head == answer.len()).then_some(Some(status))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gateway(text: &str) -> Gateway {
        text.parse().unwrap()
    }

    /// Proxies in this environment.
    fn proxies(setting: &str, environment: &[(&str, &str)]) -> Result<Proxies, &'static str> {
        let setting = if setting == "-" { Setting::Environment } else { setting.to_owned().try_into().unwrap() };
        Proxies::new(&setting, |name| {
            environment.iter().find(|(given, _)| *given == name).map(|(_, text)| (*text).to_owned())
        })
    }

    fn to(proxies: &Proxies, url: &str) -> Option<String> {
        proxies.of(&gateway(url)).map(ToString::to_string)
    }

    #[test]
    fn a_proxy_is_named_by_a_url_and_its_password_is_shown_nowhere() {
        let proxy: Proxy = "http://me:p%40ss@proxy.example.org:3128".parse().unwrap();
        assert_eq!(format!("{proxy} {proxy:?}"), "http://proxy.example.org:3128 http://proxy.example.org:3128");
        assert!(request(&proxy, &gateway("wss://[2001:db8::1]")).contains(&STANDARD.encode("me:p@ss")));
        assert_eq!("proxy".parse::<Proxy>().unwrap().to_string(), "http://proxy:1080");
        assert_eq!("http://[::1]:99/".parse::<Proxy>().unwrap().to_string(), "http://[::1]:99");
        for bad in ["", "http://", "socks5://proxy:1080", "https://proxy", "http://proxy/path", "http://a b"] {
            assert_eq!(bad.parse::<Proxy>(), Err(ProxyError), "{bad}");
        }
    }

    #[test]
    fn the_setting_wins_over_the_environment_and_the_first_variable_over_the_others() {
        const URL: &str = "wss://push.example.org";
        let environment =
            [("HTTPS_PROXY", "http://second"), ("https_proxy", "first:80"), ("ALL_PROXY", "http://third")];
        let proxies_in = |setting, from: usize| to(&proxies(setting, &environment[from..]).unwrap(), URL);
        assert_eq!(proxies_in("-", 0).unwrap(), "http://first:80");
        assert_eq!(proxies_in("-", 2).unwrap(), "http://third:1080");
        assert_eq!(proxies_in("-", 3), None);
        assert_eq!(proxies_in("http://own:1", 0).unwrap(), "http://own:1");
        assert_eq!((proxies_in("none", 0), proxies_in("", 0)), (None, None));
        let empty = [("https_proxy", ""), ("ALL_PROXY", "http://third")];
        assert_eq!(to(&proxies("-", &empty).unwrap(), URL).unwrap(), "http://third:1080", "empty is none, as for curl");
        assert_eq!(proxies("-", &[("all_proxy", "socks5://x")]).unwrap_err(), "all_proxy");
    }

    #[test]
    fn no_proxy_leads_to_this_machine_to_plain_text_or_to_what_is_exempt() {
        let exempt = "example.org, .lan,10.0.0.0/8 192.0.2.7,2001:db8::/32";
        let proxies = proxies("http://p", &[("NO_PROXY", exempt)]).unwrap();
        for direct in [
            "wss://localhost",
            "wss://127.0.0.9",
            "wss://[::1]",
            "ws://elsewhere.net",
            "wss://Example.org",
            "wss://push.example.org",
            "wss://tv.lan",
            "wss://10.1.2.3",
            "wss://192.0.2.7",
            "wss://[2001:db8::5]",
        ] {
            assert_eq!(to(&proxies, direct), None, "{direct}");
        }
        for far in ["wss://notexample.org", "wss://11.1.2.3", "wss://192.0.2.8", "mqtts://broker.net", "wss://lan.net"]
        {
            assert!(to(&proxies, far).is_some(), "{far}");
        }
        assert_eq!(to(&super::tests::proxies("http://p", &[("no_proxy", "*")]).unwrap(), "wss://far.net"), None);
    }

    /// What becomes of a proxy that answers this.
    async fn answered(answer: &[u8]) -> Result<(), TunnelError> {
        let proxy: Proxy = "http://me:secret@proxy:3128".parse().unwrap();
        let (mut ours, mut theirs) = tokio::io::duplex(64 * 1024);
        theirs.write_all(answer).await.unwrap();
        theirs.shutdown().await.unwrap();
        tunnel(&mut ours, &proxy, &gateway("wss://push.example.org")).await
    }

    #[tokio::test]
    async fn an_answer_is_read_within_limits_and_errors_say_what_it_was() {
        answered(b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n").await.unwrap();
        let long = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(ANSWER_MAX));
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: x\r\n".repeat(LINES_MAX + 1));
        let refused = "the proxy http://proxy:3128 does not connect to wss://push.example.org:5223: it answered";
        let unbelieved = "the proxy http://proxy:3128 wants another user and password: it answered";
        for (answer, error) in [
            ("HTTP/1.1 403 No way\r\n\r\nno", format!("{refused} 403 Forbidden")),
            ("HTTP/1.0 502 Bad\r\n\r\n", format!("{refused} 502 Bad Gateway")),
            ("HTTP/1.1 407 x\r\n\r\n", format!("{unbelieved} 407 Proxy Authentication Required")),
            ("HTTP/1.1 200 OK\r\n\r\nx", "http://proxy:3128 answers, but is no HTTP proxy".into()),
            ("SSH-2.0-x\r\n", "http://proxy:3128 answers, but is no HTTP proxy".into()),
            (&long, "http://proxy:3128 answers, but is no HTTP proxy".into()),
            (&many, "http://proxy:3128 answers, but is no HTTP proxy".into()),
            ("HTTP/1.1 200", "the proxy http://proxy:3128: unexpected end of file".into()),
        ] {
            assert_eq!(answered(answer.as_bytes()).await.unwrap_err().to_string(), error);
        }
    }

    #[test]
    fn an_answer_may_say_first_that_it_will_come() {
        let answer = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 Connection established\r\n\r\n";
        assert_eq!(status(answer), Some(Some(StatusCode::OK)));
        assert_eq!(status(&answer[..30]), Some(None), "there is more to come");
        assert_eq!(status(b"nonsense\r\n\r\n"), None);
    }
}
