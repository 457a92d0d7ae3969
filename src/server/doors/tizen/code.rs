//! The status codes of the Tizen push server: those that are answered, and [`TABLE`], which says of
//! every code of the guide when it is answered here, or why it never is.

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
    /// It names several recipients, and this region takes one at a time.
    OneAtATime = 3010,
    /// The message cannot be stored now, or is over a limit.
    ImpossibleToEnqueue = 3013,
    /// What is to be taken back was sent already, or never was there.
    NotInQueue = 3014,
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
    /// The body comes in chunks, without a length.
    Chunked = 3032,
    /// `expiryDate` is no number of minutes.
    ExpiryDate = 3033,
    /// `delayDate` is no number of minutes, or too many.
    DelayDate = 3034,
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

/// What a code of the guide is for here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// It is answered when this is so.
    Answered(&'static str),
    /// It never is, for this reason.
    Never(&'static str),
}

/// A line of the guide's table "Push notification error codes".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The code.
    pub number: u16,
    /// Its text in the table.
    pub text: &'static str,
    /// When it is answered.
    pub when: Use,
}

const fn answered(number: u16, text: &'static str, when: &'static str) -> Row {
    Row { number, text, when: Use::Answered(when) }
}

const fn never(number: u16, text: &'static str, why: &'static str) -> Row {
    Row { number, text, when: Use::Never(why) }
}

/// Every code of the guide's table, in its order.
#[rustfmt::skip]
pub const TABLE: [Row; 49] = [
    answered(1000, "Success", "the notification is on disk, or with NoReliable it was handed over if the device is connected"),
    never(1001, "Failed", "only receipts say so: the notification will not get to the device, as its registration ended, the device does not have the app, or too many waited"),
    never(1002, "Expired", "only receipts say so: the notification expired before the device had it"),
    never(3001, "Error of unknown reason", "every refusal has a code of its own, and a fault of the server is 3002"),
    answered(3002, "Internal server error", "something broke in the server; try again later"),
    never(3003, "Error of no appId field", "the guide has 3045 for a missing appID"),
    never(3004, "Error of no deviceToken field", "devices speak another protocol, which has no such field"),
    answered(3005, "Error of no regID field", "no recipient is named"),
    answered(3006, "Error of no requestID field", "no requestID is given"),
    answered(3007, "Error of at least either message or appData is needed", "neither message nor appData"),
    answered(3008, "Error of not registered regID", "the regId is forged, was issued elsewhere or for another app, or its registration has ended"),
    answered(3009, "Error of not registered appID", "the operator has not added the app"),
    answered(3010, "Error of malformed notification request data", "the request names several recipients, and the recipient's region takes one at a time"),
    never(3011, "Error of fatal problems with mapping of content", "the guide answers its malformed example with 3023"),
    never(3012, "Error of insufficient field", "each member that may be missing has a code of its own: 3005, 3006, 3007"),
    answered(3013, "Error of impossible enqueue", "it cannot be stored now, or its device or app is over a limit; try again later"),
    answered(3014, "Error of notification to cancel is not in queue or already sent", "the notification to cancel was sent to its device, has ended or never was there"),
    answered(3015, "Error of I/O produced by failed, interrupted I/O operation or unknown reason", "the recipient's region does not answer, or the body broke off; try again later"),
    answered(3016, "Error of not supporting requested URI", "there is nothing at this path"),
    answered(3017, "Error of not supporting requested method", "only POST is served here"),
    answered(3018, "Error of notification data contains unreadable data or `NULL`", "a text other than appData holds a NUL character"),
    answered(3019, "Error of containing abnormal data", "requestID, sender or sessionInfo is longer than 1024 bytes"),
    answered(3020, "Error of not supported reliability option", "reliableOption is neither NoReliable nor Transport"),
    never(3021, "Error of bad padding exception", "a regId that does not open is 3008: how it fails is nobody's business"),
    answered(3022, "Error of json parse exception", "the body is empty or not UTF-8"),
    answered(3023, "Error of json mapping", "the body is no JSON, or a member has the wrong type"),
    never(3024, "Error of illegal blocksize", "a regId that does not open is 3008: how it fails is nobody's business"),
    answered(3025, "Error occurred while decoding regID", "the regId is not in its encoding"),
    never(3026, "Error of no secret key field", "the guide has 3045 for a missing appSecret"),
    never(3027, "Error of not authenticated application", "the guide has 3045 for a wrong appSecret"),
    answered(3028, "Error of unsupported encoding type", "encoding is neither hex nor base64"),
    never(3029, "Error of unparseable request type", "a body is parsed whatever its Content-Type says, as real senders need it"),
    answered(3030, "Error of message length excess. message length is allowed up to 2kb", "message has 2048 bytes or more"),
    never(3031, "Error of unsupported connectionTerm", "the guide has no such member, and unknown members are ignored"),
    answered(3032, "Error of not supporting chunked request body", "the body comes in chunks, without a length"),
    answered(3033, "Error of illegal expiry date", "expiryDate is no number of minutes"),
    answered(3034, "Error of illegal delay date", "delayDate is no number of minutes from 0 to 2880, or what is delayed is NoReliable"),
    answered(3035, "Error of too long chunked message data", "the body or an appData is over its limit"),
    answered(3036, "Error of empty multiple request", "messages is empty"),
    never(3037, "Error of notification key generation", "no key is made for a request"),
    never(3038, "Error of create application", "applications are managed by the operator, not through this API"),
    never(3039, "Error of delete application", "applications are managed by the operator, not through this API"),
    never(3040, "Error of read application", "applications are managed by the operator, not through this API"),
    never(3041, "Error of update application", "applications are managed by the operator, not through this API"),
    answered(3042, "Error of invalid timeStamp", "timeStamp is no number of milliseconds"),
    answered(3043, "Error of invalid type", "type is no whole number"),
    never(3044, "Error of not registered application", "it says the same as 3009"),
    answered(3045, "Error of application authentication failed", "appID or appSecret is missing, or the secret is wrong"),
    never(3046, "Error of not allowed to use Push Server", "whoever has an application's secret is allowed"),
];

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
            Self::OneAtATime => "error of malformed notification request data",
            Self::ImpossibleToEnqueue => "error of impossible to enqueue",
            Self::NotInQueue => "error of notification to cancel is not in queue or already sent",
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
            Self::Chunked => "error of not supporting chunked request body",
            Self::ExpiryDate => "error of illegal expiry date",
            Self::DelayDate => "error of illegal delay date",
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
            Self::Chunked => StatusCode::LENGTH_REQUIRED,
            Self::Authentication | Self::NotRegisteredAppId => StatusCode::UNAUTHORIZED,
            Self::Internal | Self::ImpossibleToEnqueue | Self::Io => StatusCode::SERVICE_UNAVAILABLE,
            Self::NoRegId
            | Self::NoRequestId
            | Self::NoContent
            | Self::NotRegisteredRegId
            | Self::OneAtATime
            | Self::Unreadable
            | Self::Abnormal
            | Self::Reliability
            | Self::JsonParse
            | Self::JsonMapping
            | Self::RegIdEncoding
            | Self::Encoding
            | Self::MessageLength
            | Self::ExpiryDate
            | Self::DelayDate
            | Self::NotInQueue
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
