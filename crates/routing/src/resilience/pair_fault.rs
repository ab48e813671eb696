//! Whose fault it is when a request fails at one worker of a prefill/decode pair.

/// Which worker of a pair a failure is held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PairFault {
    /// The worker that reports it.
    Reporter,
    /// The other one: the reporter waited for it in vain, or lost it.
    Partner,
    /// Neither: the request was ended from outside, or was wrong.
    Neither,
}

/// What SGLang's messages say of the other worker, before what they say of none: a failed handshake
/// ends with the words of an abort.
const PARTNER: [&str; 4] = [
    "Lost connection with prefill",
    "Decode handshake failed",
    "KVPoll.WaitingForInput",
    "KVPoll.Bootstrapping",
];

/// What they say of neither.
const NEITHER: [&str; 4] = [
    "Aborted by AbortReq",
    "from another rank",
    "without bootstrap room id",
    "Duplicate request ID",
];

impl PairFault {
    /// Whose fault a failure is, by the message of an SGLang engine (`disaggregation/prefill.py`,
    /// `decode.py` and the transfer backends of 0.5.23).
    pub fn of_message(message: &str) -> Self {
        let says = |words: &[&str]| words.iter().any(|words| message.contains(words));
        if says(&PARTNER) {
            Self::Partner
        } else if says(&NEITHER) {
            Self::Neither
        } else {
            Self::Reporter
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_follows_from_what_engines_say() {
        use PairFault::{Neither, Partner, Reporter};
        for (message, fault) in [
            (
                "Prefill bootstrap failed for request rank=0 with exception timed out after 30.0s in KVPoll.Bootstrapping",
                Partner,
            ),
            (
                "Decode transfer failed: timed out after 40.0s in KVPoll.WaitingForInput",
                Partner,
            ),
            (
                "Lost connection with prefill instance (bootstrap_addr: h:1)",
                Partner,
            ),
            (
                "Decode handshake failed for request: Aborted by AbortReq.",
                Partner,
            ),
            ("Aborted by AbortReq.", Neither),
            ("Failed due to an unknown reason from another rank", Neither),
            (
                "Disaggregated request received without bootstrap room id",
                Neither,
            ),
            ("Duplicate request ID detected: 7", Neither),
            (
                "Metadata corruption detected - bootstrap_room mismatch",
                Reporter,
            ),
            ("CUDA out of memory", Reporter),
            ("", Reporter),
        ] {
            assert_eq!(PairFault::of_message(message), fault, "{message}");
        }
    }
}
