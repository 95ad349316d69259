//! What becomes of requests beside their answers, by name: why they are tried again, or are not, and what became of copies.

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

/// What became of a copy of a request, for `weft_mirrored_total{result}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mirrored {
    /// It was answered, with whatever status.
    Answered,
    /// It was sent, or could not be, and was not answered.
    Failed,
    /// It was not made: too many were under way.
    Busy,
    /// The same: the body is too long.
    TooLong,
    /// The same: the original ended before its body.
    Incomplete,
    /// The same: the request asks for another protocol, or there is no such backend.
    Impossible,
}

impl Mirrored {
    pub(super) const ALL: [Self; 6] =
        [Self::Answered, Self::Failed, Self::Busy, Self::TooLong, Self::Incomplete, Self::Impossible];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Failed => "failed",
            Self::Busy => "busy",
            Self::TooLong => "too_long",
            Self::Incomplete => "incomplete",
            Self::Impossible => "impossible",
        }
    }
}

/// What went wrong on purpose, for `weft_faults_total{fault}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Faulted {
    Delay,
    Abort,
}

impl Faulted {
    pub(super) const ALL: [Self; 2] = [Self::Delay, Self::Abort];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Delay => "delay",
            Self::Abort => "abort",
        }
    }
}
