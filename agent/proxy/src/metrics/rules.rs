//! Why requests are tried again, or are not, by name.

/// Why one was, for `weft_retries_total{cause}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Retried {
    /// The answer had a status that the rule names.
    Status,
    /// No endpoint could be reached.
    Connect,
    /// The endpoint ended its connection or stream without an answer.
    Reset,
    /// It took too long.
    Timeout,
}

impl Retried {
    pub(super) const ALL: [Self; 4] = [Self::Status, Self::Connect, Self::Reset, Self::Timeout];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Connect => "connect",
            Self::Reset => "reset",
            Self::Timeout => "timeout",
        }
    }
}

/// Why one was not, for `weft_retry_skipped_total{reason}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RetrySkipped {
    /// As many as the rule allows were made.
    Attempts,
    /// Its body is too long, or has trailers.
    Body,
    /// The budget is spent.
    Budget,
    /// It may have had its effect, and its method is not idempotent.
    Method,
    /// Its time would be over.
    Time,
}

impl RetrySkipped {
    pub(super) const ALL: [Self; 5] = [Self::Attempts, Self::Body, Self::Budget, Self::Method, Self::Time];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Attempts => "attempts",
            Self::Body => "body",
            Self::Budget => "budget",
            Self::Method => "method",
            Self::Time => "time",
        }
    }
}
