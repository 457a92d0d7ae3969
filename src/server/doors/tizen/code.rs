//! The status codes of the Tizen push server, with their texts.

use axum::http::StatusCode;

/// A status code. Texts are those of the push server guide: its example answers where it has one,
/// else its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
pub enum Code {
    /// On disk, or, for `NoReliable`, handed over if the device is there.
    Success = 1000,
    /// Something broke that should not.
    Internal = 3002,
    /// No recipient is named.
    NoRegId = 3005,
    /// No request id is given.
    NoRequestId = 3006,
    /// Neither `message` nor `appData`.
    NoContent = 3007,
    /// The regId is forged, foreign, for another app, or its registration has ended.
    NotRegisteredRegId = 3008,
    /// The operator has not added this app.
    NotRegisteredAppId = 3009,
    /// The message cannot be stored now.
    ImpossibleToEnqueue = 3013,
    /// The recipient's region does not answer.
    Io = 3015,
    /// There is nothing at this path.
    Uri = 3016,
    /// Only POST is served here.
    Method = 3017,
    /// A text holds a NUL character.
    Unreadable = 3018,
    /// A text is longer than any app can want.
    Abnormal = 3019,
    /// `reliableOption` is neither `NoReliable` nor `Transport`.
    Reliability = 3020,
    /// The body is empty or not UTF-8.
    JsonParse = 3022,
    /// The body is no JSON of a request.
    JsonMapping = 3023,
    /// The regId is not in its encoding.
    RegIdEncoding = 3025,
    /// `encoding` is neither `hex` nor `base64`.
    Encoding = 3028,
    /// `message` has 2048 bytes or more.
    MessageLength = 3030,
    /// `expiryDate` is no number of minutes.
    ExpiryDate = 3033,
    /// The body or an `appData` is over the limit.
    TooLong = 3035,
    /// `messages` is an empty list.
    EmptyMultiple = 3036,
    /// `timeStamp` is no number of milliseconds.
    TimeStamp = 3042,
    /// `type` is no whole number.
    Type = 3043,
    /// App id or secret are missing, or the secret is wrong.
    Authentication = 3045,
}

impl Code {
    /// Its number.
    pub fn number(self) -> u16 {
        self as u16
    }

    /// Its text.
    pub fn message(self) -> &'static str {
        match self {
            Self::Success => "Success",
            Self::Internal => "internal server error",
            Self::NoRegId => "error of no regID field",
            Self::NoRequestId => "error of no requestID field",
            Self::NoContent => "error of at least either message or appData is needed",
            Self::NotRegisteredRegId => "error of not registered regID",
            Self::NotRegisteredAppId => "error of not registered appID",
            Self::ImpossibleToEnqueue => "error of impossible to enqueue",
            Self::Io => "error of I/O produced by failed, interrupted I/O operation or unknown reason",
            Self::Uri => "error of not supporting requested URI",
            Self::Method => "error of not supporting requested method",
            Self::Unreadable => "error of notification data contains unreadable data or NULL",
            Self::Abnormal => "error of containing abnormal data",
            Self::Reliability => "error of not supported reliability option",
            Self::JsonParse => "error of json parse exception",
            Self::JsonMapping => "error of json mapping exception",
            Self::RegIdEncoding => "error occurred while decoding regID",
            Self::Encoding => "error of unsupported encoding type",
            Self::MessageLength => "error of message length excess. message length is allowed up to 2kb",
            Self::ExpiryDate => "error of illegal expiry date",
            Self::TooLong => "error of too long chunked message data",
            Self::EmptyMultiple => "error of empty multiple request",
            Self::TimeStamp => "error of invalid timeStamp",
            Self::Type => "error of invalid type",
            Self::Authentication => "error of application authentication failed",
        }
    }

    /// The HTTP status of a refusal with this code.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Success => StatusCode::OK,
            Self::Uri => StatusCode::NOT_FOUND,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLong => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Authentication | Self::NotRegisteredAppId => StatusCode::UNAUTHORIZED,
            Self::Internal | Self::ImpossibleToEnqueue | Self::Io => StatusCode::SERVICE_UNAVAILABLE,
            Self::NoRegId
            | Self::NoRequestId
            | Self::NoContent
            | Self::NotRegisteredRegId
            | Self::Unreadable
            | Self::Abnormal
            | Self::Reliability
            | Self::JsonParse
            | Self::JsonMapping
            | Self::RegIdEncoding
            | Self::Encoding
            | Self::MessageLength
            | Self::ExpiryDate
            | Self::EmptyMultiple
            | Self::TimeStamp
            | Self::Type => StatusCode::BAD_REQUEST,
        }
    }

    /// Whether the same request may succeed a little later.
    pub fn is_passing(self) -> bool {
        matches!(self, Self::Internal | Self::ImpossibleToEnqueue | Self::Io)
    }
}
