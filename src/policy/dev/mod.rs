//! The policy set of `mayfly agent --dev`: built in, about the one user it serves, read like any other.

use super::PolicySet;
use crate::diag::Problems;
use crate::id::TrustDomain;

impl PolicySet {
    /// The built-in set. `user` is what the one person is called: the development agent's own user.
    ///
    /// # Errors
    /// Only where there is no policy engine: the texts are fixed.
    pub fn of_user(trust_domain: &TrustDomain, uid: u32, user: &str) -> Result<Self, Problems> {
        // The name may hold anything that a user's name may; the catalogue takes plain names only.
        let person = if crate::diag::is_name(user, 64) { user.to_owned() } else { uid.to_string() };
        let catalogue = CATALOGUE
            .replace("{trust_domain}", trust_domain.as_str())
            .replace("{uid}", &uid.to_string())
            .replace("{person}", &person);
        let files = [
            ("--dev/policy.cedar".to_owned(), POLICIES.as_bytes().to_vec()),
            ("--dev/catalogue.toml".to_owned(), catalogue.into_bytes()),
        ];
        Self::parse(&files, Some(trust_domain))
    }
}

const POLICIES: &str = include_str!("policy.cedar");
const CATALOGUE: &str = include_str!("catalogue.toml");

#[cfg(test)]
mod tests {
    #[cfg(feature = "cedar")]
    use super::*;

    #[cfg(feature = "cedar")]
    #[test]
    fn the_built_in_set_loads_whatever_the_user_is_called_and_nobody_has_to_mend_it() {
        let domain = "dev.mayfly.internal".parse().unwrap();
        for user in ["ann", "o'\"neil", "ünicode", ""] {
            let set = PolicySet::of_user(&domain, 1000, user).unwrap_or_else(|found| panic!("{found}"));
            assert!(set.is_loaded() && set.policies() == 8, "{user}");
            let failing: Vec<_> =
                set.lint(std::time::UNIX_EPOCH).into_iter().filter(|lint| lint.fails).collect();
            assert!(failing.is_empty(), "{failing:?}");
        }
    }
}
