//! For whom an agent works: what its user's token proves, and how policy knows that user.

use std::sync::Arc;

use super::{TaskError, TaskView};
use crate::config::UserIssuer;
use crate::files::{FileError, TrustRules, read_trusted};
use crate::issue::user::{KeySetError, UserKeys, UserToken, Verified, verify};
use crate::policy::{PolicySet, UserFacts};
use crate::task::User;
use crate::workload::{Admission, Refusal, Shared};

/// Why an issuer's keys are not to be had.
#[derive(Debug, thiserror::Error)]
enum KeysError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{0:?} {1}")]
    Set(std::path::PathBuf, #[source] KeySetError),
}

impl Shared {
    /// The user whom the token proves; `None` without a token. A token that proves nobody is recorded, and nothing of it.
    pub(super) async fn verify_user(
        self: &Arc<Self>,
        admission: &Admission,
        token: Option<&UserToken>,
    ) -> Result<Option<User>, TaskError> {
        let Some(token) = token.cloned() else { return Ok(None) };
        let shared = Arc::clone(self);
        // The issuer's keys are in a file: no thread that serves others waits for it.
        let verified = tokio::task::spawn_blocking(move || {
            mayfly_attestors::failpoint::hit("user.read_keys");
            verify(&token, &shared.settings.users, &keys_of, shared.parts.clock.wall())
        });
        // It only fails when the agent stops.
        let verified = verified.await.map_err(|_stopping| TaskError::Workload(Refusal::WatchLost))?;
        // The task ends when it ends, not with the token: a token says who somebody is, not for how long work goes on.
        let Verified { iss, sub, expires: _ } = verified.map_err(|why| {
            self.note_denied(admission.process(), "user", &why.to_string());
            TaskError::User(why)
        })?;
        Ok(Some(User { iss, sub }))
    }

    /// In whose name the task is, for policy.
    pub(super) fn user_facts(&self, view: &TaskView) -> Option<UserFacts> {
        user_of(&self.parts.policy.in_force(), view.task.charter.user.as_ref())
    }
}

/// A user as policies know him: a person of the catalogue, or a name that nobody there can have.
pub(super) fn user_of(set: &PolicySet, user: Option<&User>) -> Option<UserFacts> {
    let user = user?;
    let name = set.catalogue().name_of_user(&user.iss, &user.sub);
    Some(UserFacts { name, ..UserFacts::default() })
}

/// Says at once which users nobody will be believed to be, rather than when the first comes.
pub(in crate::workload) fn look_at(issuers: &[UserIssuer]) {
    for issuer in issuers {
        keys_of(issuer);
    }
}

/// Read anew each time: an issuer changes its keys when it likes, and users come seldom.
fn keys_of(issuer: &UserIssuer) -> Option<UserKeys> {
    let keys = read_keys(issuer);
    keys.inspect_err(|error| {
        tracing::error!(issuer = issuer.issuer, %error, "users of this issuer are refused: put its JWK set there");
    })
    .ok()
}

fn read_keys(issuer: &UserIssuer) -> Result<UserKeys, KeysError> {
    let bytes = read_trusted(&issuer.jwks, &TrustRules::public(MAX_JWKS_BYTES))?;
    UserKeys::read(&bytes).map_err(|error| KeysError::Set(issuer.jwks.clone(), error))
}

const MAX_JWKS_BYTES: u64 = 128 * 1024;
