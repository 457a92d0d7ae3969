//! Sender APIs. A door authenticates, parses its request into validated pushes, and answers in its
//! API's own words; it has no queue and no model of its own.

pub mod body;
pub mod matrix;
pub mod messages;
pub mod sender;
pub mod tizen;
pub mod webpush;
