//! Rotation of the signing key, in the four steps of Secrets Manager
//! (https://docs.aws.amazon.com/secretsmanager/latest/userguide/rotate-secrets_lambda-functions.html).
//!
//! A key is published one rotation before it signs, and is accepted for one rotation after. So a sandbox that
//! lives through a rotation knows every key that the others sign with, and no token ends before its time.

use aws_sdk_secretsmanager::error::SdkError;
use serde::Deserialize;
use uuid::Uuid;

use crate::auth::jwt::{Keys, Seeds};
use crate::clock;
use crate::crypto;
use crate::error::{Error, Result};
use crate::secrets;

const CURRENT: &str = "AWSCURRENT";
const PENDING: &str = "AWSPENDING";

/// What Secrets Manager asks for.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RotationEvent {
    secret_id: String,
    /// The id of the version that is made.
    client_request_token: String,
    step: Step,
}

#[derive(Debug, Clone, Copy, Deserialize)]
enum Step {
    #[serde(rename = "createSecret")]
    Create,
    #[serde(rename = "setSecret")]
    Set,
    #[serde(rename = "testSecret")]
    Test,
    #[serde(rename = "finishSecret")]
    Finish,
}

impl Seeds {
    /// Each key moves on by one. Where no next key was announced, one is, and the current one stays.
    fn advance(self, fresh: String) -> Self {
        if self.next.is_empty() {
            return Self { next: fresh, ..self };
        }
        Self { current: self.next, next: fresh, previous: self.current }
    }

    /// Whether these seeds make keys, and what the current one signs is accepted by both.
    fn prove(&self) -> Result<()> {
        let keys = Keys::of(self)?;
        let token = keys.sign(Uuid::nil(), Uuid::nil(), clock::now())?;
        keys.verify(&token.token).map(drop)
    }
}

/// Does one step; a step that was done already changes nothing.
///
/// # Errors
/// When Secrets Manager does not answer, or the new version does not sign.
pub async fn run(request: &RotationEvent) -> Result<()> {
    let id = &request.secret_id;
    match request.step {
        Step::Create => {
            if read(id, PENDING, Some(&request.client_request_token)).await?.is_some() {
                return Ok(());
            }
            let (_, seeds) = current(id).await?;
            let seeds = seeds.advance(hex::encode(crypto::random()?));
            secrets::client()?
                .put_secret_value()
                .secret_id(id)
                .client_request_token(&request.client_request_token)
                .secret_string(serde_json::to_string(&seeds)?)
                .version_stages(PENDING)
                .send()
                .await?;
        }
        // There is no server that has to be told of the key.
        Step::Set => {}
        Step::Test => {
            let pending = read(id, PENDING, Some(&request.client_request_token)).await?;
            let (_, seeds) = pending.ok_or_else(|| Error::internal("there is no pending version to test"))?;
            seeds.prove()?;
        }
        Step::Finish => {
            let (version, _) = current(id).await?;
            if version == request.client_request_token {
                return Ok(());
            }
            secrets::client()?
                .update_secret_version_stage()
                .secret_id(id)
                .version_stage(CURRENT)
                .move_to_version_id(&request.client_request_token)
                .remove_from_version_id(version)
                .send()
                .await?;
            tracing::info!("the signing key was rotated");
        }
    }
    Ok(())
}

async fn current(id: &str) -> Result<(String, Seeds)> {
    read(id, CURRENT, None).await?.ok_or_else(|| Error::internal("the signing secret has no current version"))
}

/// A version and its id, if there is one.
async fn read(id: &str, stage: &str, version: Option<&str>) -> Result<Option<(String, Seeds)>> {
    let request = secrets::client()?.get_secret_value().secret_id(id).version_stage(stage);
    let reply = match request.set_version_id(version.map(str::to_owned)).send().await {
        Ok(reply) => reply,
        Err(SdkError::ServiceError(error)) if error.err().is_resource_not_found_exception() => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let shape = || Error::internal("the signing secret has another shape");
    let version = reply.version_id.ok_or_else(shape)?;
    // The parser's message may quote the value.
    let seeds = reply.secret_string.as_deref().and_then(|text| serde_json::from_str(text).ok());
    Ok(Some((version, seeds.ok_or_else(shape)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seeds(current: &str, next: &str, previous: &str) -> Seeds {
        Seeds { current: current.to_owned(), next: next.to_owned(), previous: previous.to_owned() }
    }

    #[test]
    fn the_first_rotation_announces_and_the_later_ones_move_on() {
        let first = seeds("a", "", "").advance("b".to_owned());
        assert!(first == seeds("a", "b", ""));
        let second = first.advance("c".to_owned());
        assert!(second == seeds("b", "c", "a"));
        assert!(second.advance("d".to_owned()) == seeds("c", "d", "b"));
    }

    #[test]
    fn whoever_knows_the_seeds_before_or_after_a_rotation_accepts_the_tokens_of_both() {
        let keys = |seeds: &Seeds| Keys::of(seeds).unwrap();
        let before = seeds("a", "b", "");
        let after = before.clone().advance("c".to_owned());
        let sign = |keys: &Keys| keys.sign(Uuid::nil(), Uuid::nil(), clock::now()).unwrap().token;
        let (old, new) = (keys(&before), keys(&after));
        assert_ne!(sign(&old).split('.').next(), sign(&new).split('.').next(), "the same key signs");
        for token in [sign(&old), sign(&new)] {
            assert!(old.verify(&token).is_ok() && new.verify(&token).is_ok());
        }
        let published = |keys: &Keys| keys.jwks().unwrap()["keys"].as_array().unwrap().len();
        assert_eq!((published(&old), published(&new)), (2, 3));
        let latest = after.advance("d".to_owned());
        assert!(keys(&latest).verify(&sign(&old)).is_err(), "a key of two rotations ago is accepted");
    }

    #[test]
    fn seeds_without_a_key_are_refused() {
        assert!(seeds("a", "b", "").prove().is_ok());
        assert!(Seeds::default().prove().is_err());
    }
}
