//! What the gateway learns from replies: how long outputs are, and what decode costs.

use std::time::Duration;

use routing::prefix::{BLOCK, CacheReport, Correction, Prediction, ReportKind};
use routing::{Lease, OutputLengths, TextRatio};

use super::options::FleetOptions;
use super::trace::Trace;
use crate::engine::mix;

/// The replies so far.
#[derive(Debug)]
pub(super) struct Replies<'t> {
    trace: &'t Trace,
    block_tokens: u64,
    output_scale: f64,
    lengths: OutputLengths,
    /// When each request was sent to its worker, in seconds.
    sent: Vec<f64>,
    /// What was believed of the workers' caches, of the requests under way.
    predictions: Vec<Option<Prediction>>,
    /// Tokens of the prompt that were cached, by request.
    cached: Vec<u64>,
}

impl<'t> Replies<'t> {
    pub(super) fn new(trace: &'t Trace, options: &FleetOptions) -> Self {
        Self {
            trace,
            block_tokens: options.block_tokens.max(1).into(),
            output_scale: options.output_scale,
            lengths: OutputLengths::default(),
            sent: vec![0.0; trace.len()],
            predictions: vec![None; trace.len()],
            cached: vec![0; trace.len()],
        }
    }

    /// Output that is expected of a request, in tokens as the policy counts them.
    pub(super) fn expected(&self, request: usize) -> u64 {
        let longest = self.trace.longest_output(request).into();
        let expected = self.lengths.expected(self.key(request), Some(longest));
        self.policy_tokens(expected)
    }

    /// A request goes to its worker, of whose cache this is believed.
    pub(super) fn sent(&mut self, request: usize, now: f64, prediction: Option<Prediction>) {
        self.sent[request] = now;
        self.predictions[request] = prediction;
    }

    /// The worker had so many tokens of the prompt cached.
    pub(super) fn found_cached(&mut self, request: usize, tokens: u64) {
        if let Some(prediction) = &self.predictions[request] {
            prediction.first_byte();
            self.cached[request] = tokens;
        }
    }

    /// What the complete reply disproves.
    pub(super) fn correction(&mut self, request: usize) -> Option<Correction> {
        let prediction = self.predictions[request].take()?;
        let report = CacheReport {
            kind: ReportKind::Native,
            prompt: None,
            cached: self.policy_tokens(self.cached[request]),
        };
        prediction.compare(report).correction
    }

    /// It has its first token.
    pub(super) fn first_token(&self, request: usize, now: f64, lease: &mut Lease) {
        lease.first_token(self.since_sent(request, now));
    }

    /// It has its last token.
    pub(super) fn last_token(&self, request: usize, now: f64, mut lease: Lease) {
        let scaled = f64::from(self.trace.output(request)) * self.output_scale;
        #[expect(clippy::cast_sign_loss, reason = "lengths are not negative")]
        let tokens = scaled.round() as u64;
        self.lengths.observe(self.key(request), tokens);
        lease.last_token(self.since_sent(request, now), self.policy_tokens(tokens));
    }

    /// Tokens of the trace as the policy counts them: it sees a block of the trace as one of its
    /// own.
    fn policy_tokens(&self, tokens: u64) -> u64 {
        TextRatio::USUAL.to_tokens(tokens * BLOCK as u64 / self.block_tokens)
    }

    fn key(&self, request: usize) -> Option<u64> {
        let tenant = self.trace.tenant(request)?;
        Some(mix(0, tenant as u64))
    }

    fn since_sent(&self, request: usize, now: f64) -> Duration {
        Duration::from_secs_f64((now - self.sent[request]).max(0.0))
    }
}
