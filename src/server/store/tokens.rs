//! The tokens of operators' programs: random, kept as hashes, few.

use crate::db::DbError;
use crate::proto::UnixMillis;
use crate::server::manage::TokenName;
use crate::world;

use super::{Store, hash, sql};

/// Most tokens: each request of the admin API is compared with all of them.
pub const TOKENS_MAX: usize = 100;

/// What became of a new token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenAdded {
    /// It is good from now on.
    Added,
    /// There is one of that name.
    Taken,
    /// There are [`TOKENS_MAX`].
    TooMany,
}

/// A token, for an operator's list.
#[derive(Clone, Debug)]
pub struct TokenRow {
    /// Its name.
    pub name: TokenName,
    /// When it was made.
    pub created_ms: UnixMillis,
}

impl Store {
    /// Adds a token.
    pub async fn add_token(&self, name: TokenName, token: &str) -> Result<TokenAdded, DbError> {
        let hash = hash(token.as_bytes());
        self.writer.write(move |db| sql::add_token(db, &name, &hash, TOKENS_MAX, world::now())).await
    }

    /// The tokens, by name.
    pub async fn list_tokens(&self) -> Result<Vec<TokenRow>, DbError> {
        self.observer.read(sql::list_tokens).await
    }

    /// Removes a token; `false` if there is none of that name.
    pub async fn remove_token(&self, name: TokenName) -> Result<bool, DbError> {
        self.writer.write(move |db| sql::remove_token(db, &name)).await
    }

    /// Whether this is one of the tokens. Takes the same time for all that are none.
    pub async fn check_token(&self, token: &str) -> Result<bool, DbError> {
        use subtle::ConstantTimeEq;
        let given = hash(token.as_bytes());
        let stored = self.reader().read(sql::token_hashes).await?;
        let fits = stored.iter().fold(subtle::Choice::from(0), |found, hash| found | hash.as_slice().ct_eq(&given));
        Ok(fits.into())
    }
}
