//! The `message` string of the Tizen API, parsed: `action=ALERT&badgeOption=INCREASE&...`.
//!
//! Form-encoded pairs in any order; unknown keys are ignored, of duplicates the last wins, and a
//! value that makes no sense counts as absent and leaves a reason behind. Parsing never fails and
//! never drops a message: the app always gets the raw string. Source: the push server guide's
//! table of key-value pairs; "+" for space is what the Tizen daemon came to do.

/// What to do with a notification whose app is not connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Keep it and show it to the user.
    Alert,
    /// Keep it; what is done if nothing is asked for.
    Silent,
    /// Throw it away.
    Discard,
    /// Start the app in the foreground and deliver.
    Launch,
    /// Start the app without a window and deliver.
    BackgroundLaunch,
}

/// A change to the app's badge. Numbers are 0 to 999.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Badge {
    /// Add.
    Increase(u16),
    /// Subtract.
    Decrease(u16),
    /// Replace.
    Set(u16),
}

/// The parsed fields of a `message` string.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Fields {
    /// `action`.
    pub action: Option<Action>,
    /// `alertMessage`, decoded, at most [`ALERT_BYTES`] bytes.
    pub alert: Option<String>,
    /// `badgeOption` with `badgeNumber`.
    pub badge: Option<Badge>,
    /// What was passed over, and why; for the message's history.
    pub problems: Vec<String>,
}

/// The longest alert text, in bytes of UTF-8.
pub const ALERT_BYTES: usize = 127;
/// The highest badge number.
pub const BADGE_MAX: u16 = 999;

/// Parses a raw `message` string. Every string has a meaning; see the file's head for the rules.
pub fn parse(raw: &str) -> Fields {
    let mut fields = Fields::default();
    let (mut verb, mut text, mut option, mut number) = (None, None, None, None);
    for (key, value) in form_urlencoded::parse(raw.as_bytes()) {
        match key.as_ref() {
            "action" => verb = Some(value),
            "alertMessage" => text = Some(value),
            "badgeOption" => option = Some(value),
            "badgeNumber" => number = Some(value),
            _ => {}
        }
    }
    // Only the last of each is judged: a sender cannot make us hold a reason for every repetition.
    fields.action = verb.and_then(|verb| action(&verb, &mut fields.problems));
    fields.alert = text.map(|text| alert(&text, &mut fields.problems));
    fields.badge = option.and_then(|option| badge(&option, number.as_deref(), &mut fields.problems));
    fields
}

fn action(value: &str, problems: &mut Vec<String>) -> Option<Action> {
    match value {
        "ALERT" => Some(Action::Alert),
        "SILENT" => Some(Action::Silent),
        "DISCARD" => Some(Action::Discard),
        "LAUNCH" => Some(Action::Launch),
        "BACKGROUNDLAUNCH" | "backgroundLaunch" => Some(Action::BackgroundLaunch),
        "" => None,
        _ => {
            problems.push("action is none of ALERT, SILENT, DISCARD, LAUNCH, BACKGROUNDLAUNCH".into());
            None
        }
    }
}

fn alert(value: &str, problems: &mut Vec<String>) -> String {
    let cut = (0..=ALERT_BYTES.min(value.len())).rev().find(|at| value.is_char_boundary(*at)).unwrap_or(0);
    if cut < value.len() {
        problems.push(format!("alertMessage was cut to {cut} bytes"));
    }
    value[..cut].to_owned()
}

fn badge(option: &str, number: Option<&str>, problems: &mut Vec<String>) -> Option<Badge> {
    let Some(number) = number.and_then(|text| text.parse().ok()).filter(|n| *n <= BADGE_MAX) else {
        problems.push(format!("badgeNumber is not a number from 0 to {BADGE_MAX}"));
        return None;
    };
    match option {
        "INCREASE" => Some(Badge::Increase(number)),
        "DECREASE" => Some(Badge::Decrease(number)),
        "SET" => Some(Badge::Set(number)),
        _ => {
            problems.push("badgeOption is none of INCREASE, DECREASE, SET".into());
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guide_s_example_parses_in_any_order() {
        let expected = Fields {
            action: Some(Action::Alert),
            alert: Some("Hi".into()),
            badge: Some(Badge::Increase(1)),
            problems: vec![],
        };
        assert_eq!(parse("action=ALERT&badgeOption=INCREASE&badgeNumber=1&alertMessage=Hi"), expected);
        assert_eq!(parse("badgeNumber=1&alertMessage=Hi&badgeOption=INCREASE&action=ALERT"), expected);
    }

    #[test]
    fn nothing_asks_for_nothing_without_complaint() {
        assert_eq!(parse(""), Fields::default());
        assert_eq!(parse("example"), Fields::default());
        assert_eq!(parse("alartMessage=Hi&x=1"), Fields::default());
    }

    #[test]
    fn values_are_form_decoded_and_the_last_of_a_key_wins() {
        let fields = parse("alertMessage=a&alertMessage=Two+words%21&action=LAUNCH");
        assert_eq!(fields.alert.as_deref(), Some("Two words!"));
        assert_eq!(fields.action, Some(Action::Launch));
    }

    #[test]
    fn nonsense_counts_as_absent_and_leaves_a_reason() {
        for raw in
            ["action=SHOUT", "badgeOption=ADD&badgeNumber=1", "badgeOption=SET&badgeNumber=1000", "badgeOption=SET"]
        {
            let fields = parse(raw);
            assert_eq!((fields.action, fields.badge, fields.problems.len()), (None, None, 1), "{raw}");
        }
    }

    #[test]
    fn of_a_repeated_key_only_the_last_is_complained_about() {
        assert_eq!(parse("action=SHOUT&action=ALERT"), Fields { action: Some(Action::Alert), ..Fields::default() });
        assert_eq!(parse(&"action=SHOUT&".repeat(150)).problems.len(), 1);
    }

    #[test]
    fn long_alerts_are_cut_between_characters() {
        let fields = parse(&format!("alertMessage={}", "ä".repeat(80)));
        assert_eq!(fields.alert.map(|text| text.len()), Some(126));
        assert_eq!(fields.problems.len(), 1);
    }
}
