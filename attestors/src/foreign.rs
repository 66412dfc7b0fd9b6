//! Types of selectors that no attestor of ours gives: the configuration declares them for external attestors.

use crate::selector::{Selector, Strength};
use crate::text;

/// A type with the keys that its attestor may give, and what they are worth.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ForeignType {
    name: &'static str,
    keys: &'static [&'static str],
    strength: Strength,
}

/// Types that are ours, now or soon: nobody else's attestor may speak for them.
const OURS: &[&str] =
    &["cgroup", "docker", "k8s", "mayfly", "podman", "process", "spiffe", "systemd", "task", "unix"];

/// Why a type cannot be declared.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ForeignError {
    /// Not a word.
    #[error("`{0}` is no name: write 1 to 32 of `a-z 0-9 - _`, a letter first")]
    Name(String),
    /// The type of an attestor of ours.
    #[error("`{0}` is the type of a built-in attestor: take another name")]
    Ours(String),
    /// No keys, or very many.
    #[error("has {0} keys: write 1 to 32")]
    Keys(usize),
    /// One key twice.
    #[error("has the key `{0}` twice")]
    Twice(String),
}

impl ForeignType {
    /// Declares a type. It is never forgotten: that is for a configuration, which is read once.
    ///
    /// # Errors
    /// See [`ForeignError`].
    pub fn declare(name: &str, keys: &[String], strength: Strength) -> Result<Self, ForeignError> {
        let word = |text: &str| -> Result<&'static str, ForeignError> {
            let plain =
                |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
            let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase());
            if first && text.len() <= 32 && text.bytes().all(plain) {
                Ok(Box::leak(Box::<str>::from(text)))
            } else {
                Err(ForeignError::Name(text::of_bytes(text.as_bytes())))
            }
        };
        if OURS.contains(&name) {
            return Err(ForeignError::Ours(name.to_owned()));
        }
        if !(1..=32).contains(&keys.len()) {
            return Err(ForeignError::Keys(keys.len()));
        }
        let mut known = Vec::with_capacity(keys.len());
        for key in keys {
            let key = word(key)?;
            if known.contains(&key) {
                return Err(ForeignError::Twice(key.to_owned()));
            }
            known.push(key);
        }
        Ok(Self { name: word(name)?, keys: Vec::leak(known), strength })
    }

    /// The type.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Its keys, as declared.
    pub fn keys(&self) -> &'static [&'static str] {
        self.keys
    }

    /// What its selectors are worth.
    pub fn strength(&self) -> Strength {
        self.strength
    }

    /// A selector of this type, its value escaped; `None` for a key that was not declared.
    pub fn selector(&self, key: &str, value: &str) -> Option<Selector> {
        let key = self.keys.iter().find(|known| **known == key)?;
        Some(Selector::weighed(self.name, key, text::of_bytes(value.as_bytes()), self.strength))
    }

    /// As [`Self::selector`], for a value that is escaped already.
    pub fn written(&self, key: &str, value: &str) -> Option<Selector> {
        let key = self.keys.iter().find(|known| **known == key)?;
        Some(Selector::weighed(self.name, key, value.to_owned(), self.strength))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declare(name: &str, keys: &[&str]) -> Result<ForeignType, ForeignError> {
        let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
        ForeignType::declare(name, &keys, Strength::Controller)
    }

    #[test]
    fn nobody_speaks_for_a_built_in_type() {
        for name in OURS {
            assert_eq!(declare(name, &["a"]), Err(ForeignError::Ours((*name).to_owned())));
        }
        for bad in ["", "1a", "A", "a:b", "a b", "-a", &"a".repeat(33)] {
            assert!(matches!(declare(bad, &["a"]), Err(ForeignError::Name(_))), "{bad}");
            assert!(matches!(declare("slurm", &[bad]), Err(ForeignError::Name(_))), "{bad}");
        }
        assert_eq!(declare("slurm", &[]), Err(ForeignError::Keys(0)));
        assert_eq!(declare("slurm", &["a", "a"]), Err(ForeignError::Twice("a".to_owned())));
    }

    #[test]
    fn only_declared_keys_make_selectors_and_values_are_escaped() {
        let slurm = declare("slurm", &["job_id", "step"]).unwrap();
        let made = slurm.selector("job_id", "7\n%").unwrap();
        assert_eq!(
            (made.to_string().as_str(), made.strength()),
            ("slurm:job_id:7%0A%25", Strength::Controller)
        );
        assert_eq!(slurm.written("job_id", "7%0A%25"), Some(made));
        assert_eq!(slurm.selector("user", "root"), None);
    }
}
