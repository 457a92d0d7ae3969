//! What apps that speak UnifiedPush call their registrations. It is never shown to others.

use std::str::FromStr;

/// What an app calls one of its registrations: 1 to 100 bytes that say nothing to others.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Token(String);

/// A text that is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a token has 1 to {} bytes", Token::MAX)]
pub struct NoToken;

impl Token {
    /// Most bytes of a token.
    pub const MAX: usize = 100;

    /// The token as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Token {
    type Err = NoToken;

    fn from_str(text: &str) -> Result<Self, NoToken> {
        if (1..=Self::MAX).contains(&text.len()) { Ok(Self(text.to_owned())) } else { Err(NoToken) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_any_text_of_1_to_100_bytes() {
        for good in ["{}", "a b\tä", &"x".repeat(100)] {
            assert_eq!(good.parse::<Token>().unwrap().as_str(), good);
        }
        for bad in ["", &"x".repeat(101), &"ä".repeat(51)] {
            assert_eq!(bad.parse::<Token>(), Err(NoToken));
        }
    }
}
