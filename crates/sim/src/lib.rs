//! A simulated SGLang worker.
