//! What the headers Prefer (RFC 7240) and Link (RFC 8288) say, as far as it is for this door. Pure.
//!
//! Both may come in several lines and may say more than is asked for here: what is not known is passed
//! over, as both documents have it.

use axum::http::{HeaderMap, HeaderName};

use axum::http::header::LINK;

/// Says what the sender would like (RFC 7240, section 2).
pub const PREFER: HeaderName = HeaderName::from_static("prefer");
/// Says which of it was done (RFC 7240, section 3).
pub const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");
/// The relation of a subscription of receipts to a message (RFC 8030, section 9.1).
pub const RECEIPT: &str = "urn:ietf:params:push:receipt";

/// Whether the sender wants to be told what becomes of the message (RFC 8030, section 5.1).
pub fn wants_receipt(headers: &HeaderMap) -> bool {
    preference(headers, "respond-async").is_some()
}

/// For how many seconds the sender would wait for an answer.
pub fn wait_s(headers: &HeaderMap) -> Option<u32> {
    preference(headers, "wait")?.parse().ok()
}

/// The value of the first preference of this name; empty if it has none.
fn preference(headers: &HeaderMap, name: &str) -> Option<String> {
    lines(headers, &PREFER).flat_map(|line| split(line, ',')).find_map(|preference| {
        let first = split(preference, ';').next()?;
        let (given, value) = first.split_once('=').unwrap_or((first, ""));
        given.trim().eq_ignore_ascii_case(name).then(|| unquoted(value))
    })
}

/// The target of the first link that names a subscription of receipts.
pub fn receipt_link(headers: &HeaderMap) -> Option<&str> {
    lines(headers, &LINK).flat_map(|line| split(line, ',')).find_map(|link| {
        let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
        split(parameters, ';').any(names_receipt).then_some(target)
    })
}

/// Whether a link's parameter says that it is one of receipts, perhaps among other things.
fn names_receipt(parameter: &str) -> bool {
    parameter.split_once('=').is_some_and(|(name, value)| {
        let is_relation = name.trim().eq_ignore_ascii_case("rel");
        is_relation && unquoted(value).split_ascii_whitespace().any(|relation| relation.eq_ignore_ascii_case(RECEIPT))
    })
}

/// The header's lines that are text.
fn lines<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok())
}

/// The parts between `separator`, but where it stands in quotes or in the angle brackets of a link.
fn split(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped, mut bracketed) = (false, false, false);
    text.split(move |c| {
        let literal = std::mem::take(&mut escaped);
        match c {
            '\\' if quoted && !literal => escaped = true,
            '"' if !literal && !bracketed => quoted = !quoted,
            '<' if !quoted => bracketed = true,
            '>' if !quoted => bracketed = false,
            _ => return c == separator && !quoted && !bracketed,
        }
        false
    })
}

/// A word without its quotes, if it has any.
fn unquoted(word: &str) -> String {
    let word = word.trim();
    let inner = word.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    inner.map_or_else(|| word.to_owned(), |inner| inner.replace('\\', ""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;
    use proptest::prelude::*;

    fn headers(name: HeaderName, lines: &[&str]) -> HeaderMap {
        let value = |line: &&str| (name.clone(), HeaderValue::from_str(line).unwrap());
        lines.iter().map(value).collect()
    }

    #[test]
    fn a3_a_receipt_is_wanted_among_other_wishes_and_in_any_line() {
        for lines in [
            &["respond-async"][..],
            &["Respond-Async"],
            &["return=minimal, respond-async"],
            &["return=minimal; foo=\"a, b\", respond-async; x"],
            &["return=minimal", "respond-async, wait=10"],
        ] {
            assert!(wants_receipt(&headers(PREFER, lines)), "{lines:?}");
        }
        for lines in [&[][..], &["respond"], &["respond-asynchronous"], &["foo=\"respond-async, respond-async\""]] {
            assert!(!wants_receipt(&headers(PREFER, lines)), "{lines:?}");
        }
    }

    #[test]
    fn who_waits_says_for_how_long() {
        for (lines, wait) in [
            (&["wait=10"][..], Some(10)),
            (&["Wait = \"20\"; x=y"], Some(20)),
            (&["respond-async", "wait=5, wait=7"], Some(5)),
            (&["wait"], None),
            (&["wait=soon"], None),
            (&["wait=-1"], None),
            (&["wait=99999999999"], None),
            (&[], None),
        ] {
            assert_eq!(wait_s(&headers(PREFER, lines)), wait, "{lines:?}");
        }
    }

    #[test]
    fn a4_the_link_of_receipts_is_found_among_others() {
        let url = "https://push.example.org/wp/r/x";
        for line in [
            format!("<{url}>; rel=\"{RECEIPT}\""),
            format!("<{url}>;rel={RECEIPT}"),
            format!("<{url}>; title=\"a; b, <c>\"; rel=\"next {RECEIPT}\""),
            format!("<https://example.org/a,b;c>; rel=next, <{url}>; REL=\"{}\"", RECEIPT.to_uppercase()),
        ] {
            assert_eq!(receipt_link(&headers(LINK, &[&line])), Some(url), "{line}");
        }
        let others = headers(LINK, &["<a>; rel=next", &format!("<{url}>; rel=\"{RECEIPT}\"")]);
        assert_eq!(receipt_link(&others), Some(url));
        for line in ["", "<a>", "a; rel=\"urn:ietf:params:push:receipt\"", "<a>; rel=\"urn:ietf:params:push\"", "<"] {
            assert_eq!(receipt_link(&headers(LINK, &[line])), None, "{line}");
        }
    }

    proptest! {
        #[test]
        fn no_header_panics(text in "[ -~]{0,60}") {
            let both = headers(PREFER, &[&text]).into_iter().chain(headers(LINK, &[&text]));
            let both: HeaderMap = both.filter_map(|(name, value)| Some((name?, value))).collect();
            wants_receipt(&both);
            wait_s(&both);
            receipt_link(&both);
        }
    }
}
