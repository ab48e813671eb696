//! Hashes that mean something within one file alone.

use std::io;

use ring::rand::{SecureRandom, SystemRandom};

/// Numbers up to 2^53 are the same in every reader of JSON.
const KEPT_BITS: u32 = 53;

/// A secret of one file, which is written nowhere. Hashes with it (BLAKE3, keyed) can neither be
/// looked up nor compared with those of another file.
#[derive(Debug)]
pub(super) struct Salt([u8; 32]);

/// What is hashed: equal numbers of two kinds have different hashes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Block = 1,
    Session,
    Key,
    /// Whether it is recorded.
    Sample,
}

impl Salt {
    /// A random one.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub(super) fn random() -> io::Result<Self> {
        let mut key = [0; 32];
        let filled = SystemRandom::new().fill(&mut key);
        filled.map_err(|_| io::Error::other("the system has no random numbers"))?;
        Ok(Self(key))
    }

    /// The hash of a number of this kind, which belongs to `owner`.
    pub(super) fn hash(&self, kind: Kind, number: u64, owner: &str) -> u64 {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&[kind as u8]);
        hasher.update(&number.to_le_bytes());
        hasher.update(owner.as_bytes());
        let mut first = [0; 8];
        hasher.finalize_xof().fill(&mut first);
        u64::from_le_bytes(first) >> (u64::BITS - KEPT_BITS)
    }

    /// The same as a share, from 0 up to 1.
    pub(super) fn share(&self, kind: Kind, number: u64) -> f64 {
        self.hash(kind, number, "") as f64 / (1_u64 << KEPT_BITS) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_depend_on_salt_kind_number_and_owner() {
        let (one, other) = (Salt::random().unwrap(), Salt::random().unwrap());
        let hash = one.hash(Kind::Block, 7, "m");
        assert_eq!(hash, one.hash(Kind::Block, 7, "m"));
        for different in [
            other.hash(Kind::Block, 7, "m"),
            one.hash(Kind::Session, 7, "m"),
            one.hash(Kind::Block, 8, "m"),
            one.hash(Kind::Block, 7, "n"),
        ] {
            assert_ne!(hash, different);
        }
        assert!(hash < 1 << KEPT_BITS);
    }

    #[test]
    fn shares_are_even() {
        let salt = Salt::random().unwrap();
        let below = (0..4000).filter(|&number| salt.share(Kind::Sample, number) < 0.25);
        assert!((850..1150).contains(&below.count()));
    }
}
