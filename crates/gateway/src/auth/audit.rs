//! What is recorded of a call of the control plane.

use http::{HeaderValue, Method, StatusCode};
use serde::Serialize;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

use super::audit_log::AuditLog;
use super::principal::{AuthMethod, Principal};
use crate::config::Role;
use crate::error::Error;

/// Longest value of a field, bytes.
const MAX_VALUE: usize = 1024;

/// Records the calls of the control plane, where that is wanted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Audit {
    log: Option<AuditLog>,
}

/// A call of the control plane.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call<'a> {
    pub(crate) method: &'a Method,
    pub(crate) path: &'a str,
    /// The path with the names of its variable parts.
    pub(crate) route: &'static str,
    pub(crate) request_id: &'a HeaderValue,
}

/// A call that was let in; recorded once its status is known, or its client has left.
#[derive(Debug)]
pub(crate) struct AuditRecord {
    log: AuditLog,
    line: Line,
}

/// A line, in the fields and words of the field.
#[derive(Debug, Serialize)]
struct Line {
    target: &'static str,
    message: &'static str,
    timestamp: String,
    principal: String,
    /// Whose key it is; empty where that is not known.
    name: String,
    auth_method: &'static str,
    role: Role,
    method: String,
    path: String,
    resource: &'static str,
    outcome: &'static str,
    /// `None` where the client left before there was one.
    status: Option<u16>,
    request_id: String,
    details: String,
}

impl Audit {
    pub(crate) fn new(log: Option<AuditLog>) -> Self {
        Self { log }
    }

    /// Whether calls can be recorded, if they are to be.
    ///
    /// # Errors
    /// [`Error::AuditUnavailable`].
    pub(crate) fn check(&self) -> Result<(), Error> {
        let broken = self.log.as_ref().is_some_and(AuditLog::is_broken);
        if broken {
            Err(Error::AuditUnavailable)
        } else {
            Ok(())
        }
    }

    /// Records a call that was refused; `principal` is known where its right did not suffice.
    pub(crate) fn deny(&self, call: Call<'_>, principal: Option<&Principal>, error: &Error) {
        if let Some(log) = &self.log {
            let mut line = Line::new(call, principal);
            line.outcome = "denied";
            line.status = Some(error.status().as_u16());
            line.details = sanitize(&error.to_string());
            log.write(line.to_bytes());
        }
    }

    /// Begins the record of a call that is let in.
    pub(crate) fn allow(&self, call: Call<'_>, principal: &Principal) -> Option<Box<AuditRecord>> {
        let log = self.log.clone()?;
        let line = Line::new(call, Some(principal));
        Some(Box::new(AuditRecord { log, line }))
    }
}

impl AuditRecord {
    /// The call has been answered.
    pub(crate) fn finish(mut self, status: StatusCode) {
        self.line.status = Some(status.as_u16());
    }
}

impl Drop for AuditRecord {
    fn drop(&mut self) {
        if self.line.status.is_none() {
            "the client left before the reply".clone_into(&mut self.line.details);
        }
        self.log.write(self.line.to_bytes());
    }
}

impl Line {
    fn new(call: Call<'_>, principal: Option<&Principal>) -> Self {
        let name = principal.map_or("unauthenticated", Principal::as_str);
        let method = principal.map_or(AuthMethod::None, Principal::method);
        let id = String::from_utf8_lossy(call.request_id.as_bytes());
        Self {
            target: "smg::audit",
            message: "control_plane_audit",
            timestamp: now(),
            principal: sanitize(name),
            name: sanitize(principal.map_or("", Principal::owner)),
            auth_method: method.as_str(),
            role: principal.map_or(Role::User, Principal::role),
            method: sanitize(call.method.as_str()),
            path: sanitize(call.path),
            resource: call.route,
            outcome: "success",
            status: None,
            request_id: sanitize(&id),
            details: String::new(),
        }
    }

    fn to_bytes(&self) -> Vec<u8> {
        // Strings and numbers always serialise.
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }
}

/// The time in UTC (RFC 3339).
fn now() -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = SystemTime.format_time(&mut Writer::new(&mut text));
    text
}

/// A value of bounded length without control characters.
fn sanitize(value: &str) -> String {
    let mut end = value.len().min(MAX_VALUE);
    while !value.is_char_boundary(end) {
        end -= 1;
    }
    let clean = |letter: char| if letter.is_control() { ' ' } else { letter };
    value[..end].chars().map(clean).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn value_is_cut_at_a_letter_and_has_no_control_characters() {
        let long = "é".repeat(MAX_VALUE);
        assert_eq!(sanitize(&long).len(), MAX_VALUE);
        let odd = format!("x{long}");
        assert_eq!(sanitize(&odd).len(), MAX_VALUE - 1);
        assert_eq!(sanitize("a\nb\u{85}c"), "a b c");
    }

    #[test]
    fn line_is_one_json_object_with_the_fields_of_the_field() {
        let call = Call {
            method: &Method::POST,
            path: "/workers/a\"b",
            route: "/workers/{id}",
            request_id: &HeaderValue::from_static("req-1"),
        };
        let line = Line::new(call, None).to_bytes();
        assert!(line.ends_with(b"\n") && line.split(|byte| *byte == b'\n').count() == 2);
        let line: Value = serde_json::from_slice(&line).unwrap();
        for (field, value) in [
            ("message", "control_plane_audit"),
            ("principal", "unauthenticated"),
            ("auth_method", "none"),
            ("role", "user"),
            ("method", "POST"),
            ("path", "/workers/a\"b"),
            ("resource", "/workers/{id}"),
            ("request_id", "req-1"),
        ] {
            assert_eq!(line[field], value, "{field}");
        }
        let timestamp = line["timestamp"].as_str().unwrap();
        assert!(
            timestamp.ends_with('Z') && timestamp.contains('T'),
            "{timestamp}"
        );
    }
}
