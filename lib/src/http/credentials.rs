//! Cookies and bearer tokens: how a request proves whose it is, and how a session is handed out.

use http::{HeaderMap, StatusCode};
use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::auth::account::{SignedIn, User};
use crate::auth::jwt::Keys;
use crate::auth::session::{Session, SessionToken, Sessions, TOKEN_PREFIX};
use crate::clock;
use crate::config::Stage;
use crate::crypto;
use crate::error::{Error, Result};
use crate::http::problem;
use crate::http::response::Response;
use crate::http::validate::{Field, Invalid, Raw};
use crate::recent::Recent;

/// The cookie's name.
const COOKIE: &str = "session";

/// A credential, as the request carries it.
#[derive(Clone)]
pub enum Credential {
    /// The session token in the cookie.
    Cookie(SessionToken),
    /// The session token as a bearer.
    Session(SessionToken),
    /// An access token.
    Jwt(String),
    /// Something that is none of these.
    Malformed,
}

impl Credential {
    /// The request's credential. An `Authorization` header counts before the cookie, even a bad one.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        if let Some(value) = headers.get("authorization") {
            let text = value.to_str().unwrap_or_default();
            let (scheme, token) = text.split_once(' ').unwrap_or((text, ""));
            let token = token.trim();
            return Some(if !scheme.eq_ignore_ascii_case("bearer") {
                Self::Malformed
            } else if token.starts_with(TOKEN_PREFIX) {
                SessionToken::parse(token).map_or(Self::Malformed, Self::Session)
            } else {
                Self::Jwt(token.to_owned())
            });
        }
        Self::cookie(headers)
    }

    /// The cookie's credential, whatever else the request carries: the first cookie of the name that holds a token of
    /// ours. A sibling site may have set one of the same name for the parent domain.
    #[must_use]
    pub fn cookie(headers: &HeaderMap) -> Option<Self> {
        headers
            .get_all("cookie")
            .iter()
            // Text or not is asked of each pair by itself: those of other applications may be in any encoding.
            .flat_map(|value| value.as_bytes().split(|byte| *byte == b';'))
            .filter_map(|pair| std::str::from_utf8(pair).ok()?.trim().split_once('='))
            .filter(|(name, _)| *name == COOKIE)
            .map(|(_, value)| SessionToken::parse(value).map_or(Self::Malformed, Self::Cookie))
            .reduce(|found, next| if matches!(found, Self::Malformed) { next } else { found })
    }

    /// The credential that holds a session token. An access token may stand beside the cookie, as pages send both; it
    /// may have expired or be of a key that is no longer ours, so there the cookie decides.
    #[must_use]
    pub fn session(headers: &HeaderMap) -> Option<Self> {
        match Self::of(headers) {
            Some(Self::Jwt(_)) => Self::cookie(headers),
            credential => credential,
        }
    }

    /// Whether the browser sent it by itself.
    #[must_use]
    pub fn is_cookie(headers: &HeaderMap) -> bool {
        // A bearer beside it proves that the page meant to send the request.
        !headers.contains_key("authorization") && matches!(Self::of(headers), Some(Self::Cookie(_) | Self::Malformed))
    }
}

/// An authenticated caller.
#[derive(Clone)]
pub struct Caller {
    /// The session.
    pub session: Session,
    /// The credential that was presented.
    pub credential: Credential,
}

impl Caller {
    /// Whose session it is.
    #[must_use]
    pub fn user_id(&self) -> Uuid {
        self.session.user_id
    }
}

/// Checks credentials against the sessions table, on every request.
pub struct Gate {
    sessions: Sessions,
    keys: Keys,
    /// Digests of session tokens that were proved: they let their owner's requests be counted beside the session read,
    /// and admit nobody.
    proved: Recent<[u8; 32]>,
    /// Sessions that were found to have ended. None begins again, and their access tokens, of which the signature stays
    /// good until they expire, must not use up what their former owner may ask for.
    ended: Recent<Uuid>,
}

fn digest(token: &SessionToken) -> [u8; 32] {
    crypto::sha256(token.reveal().as_bytes())
}

impl Gate {
    /// Reads the signing secret and the table's name.
    ///
    /// # Errors
    /// When one is missing.
    pub async fn init() -> Result<Self> {
        let (sessions, keys) = (Sessions::from_env()?, Keys::init().await?);
        Ok(Self { sessions, keys, proved: Recent::default(), ended: Recent::default() })
    }

    /// Whose a credential is, without asking the table: by a signature, unless this sandbox has found the session ended,
    /// or because it has seen the token before. It admits nobody.
    #[must_use]
    pub fn recognize(&self, credential: &Credential) -> Option<Uuid> {
        match credential {
            Credential::Jwt(token) => {
                let claims = self.keys.verify(token).ok()?;
                (!self.ended.contains(&claims.sid)).then_some(claims.sub)
            }
            Credential::Cookie(token) | Credential::Session(token) => {
                self.proved.contains(&digest(token)).then_some(token.user_id)
            }
            Credential::Malformed => None,
        }
    }

    /// The caller whom the credential proves.
    ///
    /// # Errors
    /// 401 when it proves none.
    pub async fn authenticate(&self, credential: Credential) -> Result<Caller> {
        let session = match &credential {
            Credential::Jwt(token) => {
                let claims = self.keys.verify(token)?;
                let found = self.sessions.of_access_token(&claims).await;
                if found.as_ref().is_err_and(Error::is_unauthorized) {
                    self.ended.remember(claims.sid, ());
                }
                found?
            }
            Credential::Cookie(token) | Credential::Session(token) => {
                let session = self.sessions.authenticate(token).await;
                match &session {
                    Ok(_) => self.proved.remember(digest(token), ()),
                    // Whoever goes on sending it must not use up what its former owner may ask for.
                    Err(error) if error.is_unauthorized() => self.proved.forget(&digest(token)),
                    Err(_) => {}
                }
                session?
            }
            Credential::Malformed => return Err(Error::unauthenticated()),
        };
        Ok(Caller { session, credential })
    }
}

/// How a client wants to keep its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Transport {
    /// In a cookie that scripts cannot read.
    #[default]
    Cookie,
    /// As a bearer token, for clients without cookies.
    Bearer,
}

impl Field for Transport {
    fn parse(raw: Raw<'_>) -> Result<Self, Invalid> {
        match raw.text()? {
            "cookie" => Ok(Self::Cookie),
            "bearer" => Ok(Self::Bearer),
            _ => Err(Invalid::new("unknown_value", "Must be cookie or bearer.")),
        }
    }

    fn missing() -> Result<Self, Invalid> {
        Ok(Self::default())
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SessionReply<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a User>,
    token: &'a str,
    token_type: &'static str,
    #[serde(serialize_with = "crate::clock::text::serialize")]
    expires_at: OffsetDateTime,
    #[serde(skip_serializing_if = "Option::is_none")]
    session_token: Option<String>,
}

/// The reply that hands out a new session.
///
/// # Errors
/// When the stage is unknown.
pub fn signed_in(status: StatusCode, signed_in: &SignedIn, transport: Transport) -> Result<Response> {
    let reply = SessionReply {
        user: Some(&signed_in.user),
        token: &signed_in.access_token.token,
        token_type: "Bearer",
        expires_at: signed_in.access_token.expires_at,
        session_token: (transport == Transport::Bearer).then(|| signed_in.session_token.reveal()),
    };
    let response = Response::json(status, &reply)?;
    Ok(match transport {
        Transport::Cookie => response.with_cookie(&set_cookie(&signed_in.session, &signed_in.session_token)?),
        Transport::Bearer => response,
    })
}

/// The reply that hands out a refreshed session, the way the old token came.
///
/// # Errors
/// When the stage is unknown.
pub fn refreshed(
    session: &Session,
    session_token: &SessionToken,
    access_token: &crate::auth::jwt::AccessToken,
    came_as: &Credential,
) -> Result<Response> {
    let as_cookie = matches!(came_as, Credential::Cookie(_));
    let reply = SessionReply {
        user: None,
        token: &access_token.token,
        token_type: "Bearer",
        expires_at: access_token.expires_at,
        session_token: (!as_cookie).then(|| session_token.reveal()),
    };
    let response = Response::ok(&reply)?;
    Ok(if as_cookie { response.with_cookie(&set_cookie(session, session_token)?) } else { response })
}

/// The reply to a sign-out. One without a session clears the cookie too, as scripts cannot.
///
/// # Errors
/// The outcome's, unless it is a 401.
pub fn signed_out(outcome: Result<()>, request_id: &str) -> Result<Response> {
    let response = match outcome {
        Ok(()) => Response::no_content(),
        Err(error) if error.is_unauthorized() => problem::response(&error, request_id),
        Err(error) => return Err(error),
    };
    Ok(response.with_cookie(&clear_cookie()?))
}

fn set_cookie(session: &Session, token: &SessionToken) -> Result<String> {
    // As long as the session can live; the server decides earlier.
    let age = (session.created_at + crate::auth::session::ABSOLUTE_LIFETIME - clock::now()).whole_seconds().max(0);
    Ok(format!("{COOKIE}={}; Path=/; Max-Age={age}; HttpOnly; SameSite=Lax{}", token.reveal(), secure()?))
}

/// The `Set-Cookie` value that makes the browser forget the session.
///
/// # Errors
/// When the stage is unknown.
pub fn clear_cookie() -> Result<String> {
    Ok(format!("{COOKIE}=; Path=/; Max-Age=0; HttpOnly; SameSite=Lax{}", secure()?))
}

fn secure() -> Result<&'static str> {
    Ok(if Stage::from_env()? == Stage::Local { "" } else { "; Secure" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (http::HeaderName::from_static(n), v.parse().unwrap())).collect()
    }

    fn of(pairs: &[(&'static str, &str)]) -> Option<Credential> {
        Credential::of(&headers(pairs))
    }

    #[test]
    fn finds_the_credential_and_ignores_what_is_none() {
        assert!(of(&[]).is_none());
        assert!(of(&[("cookie", "a=b; sessions=x")]).is_none());
        assert!(matches!(of(&[("cookie", "a=b; session=x")]), Some(Credential::Malformed)));
        assert!(matches!(of(&[("authorization", "bEaReR a.b.c")]), Some(Credential::Jwt(token)) if token == "a.b.c"));
        assert!(matches!(of(&[("authorization", "Basic x")]), Some(Credential::Malformed)));
        assert!(matches!(
            of(&[("authorization", "Bearer st_x"), ("cookie", "session=y")]),
            Some(Credential::Malformed)
        ));
    }

    #[test]
    fn passes_over_cookies_of_the_same_name_that_others_have_set() {
        let token = |byte| format!("{TOKEN_PREFIX}{}", crypto::base64url(&[byte; 68]));
        let (first, second) = (token(1), token(2));
        for cookies in [
            format!("session={first}"),
            format!("session=eyJfZmxhc2giOltdfQ.Z0.abc; session={first}"),
            format!("session=; a=b; session={first}; session=x"),
            format!("session={first}; session={second}"),
        ] {
            let found = of(&[("cookie", &cookies)]);
            assert!(matches!(found, Some(Credential::Cookie(token)) if token.reveal() == first), "{cookies}");
        }
        assert!(matches!(of(&[("cookie", "session=; session=x")]), Some(Credential::Malformed)));
    }

    #[test]
    fn passes_over_cookies_in_any_encoding() {
        let session = format!("session={TOKEN_PREFIX}{}", crypto::base64url(&[1; 68]));
        for other in
            ["näme=Zoë".as_bytes(), b"name=Zo\xeb", b"name=\"Zo\xeb\"", b"session=\xff", "session=Zoë".as_bytes()]
        {
            let cookies = |pairs: &[&[u8]]| {
                let values = pairs.iter().map(|value| (http::header::COOKIE, value.to_vec().try_into().unwrap()));
                Credential::of(&values.collect())
            };
            for pairs in [
                &[&[other, b"; ", session.as_bytes()].concat()[..]][..],
                &[&[session.as_bytes(), b"; ", other].concat()],
                &[other, session.as_bytes()],
            ] {
                assert!(matches!(cookies(pairs), Some(Credential::Cookie(_))), "{pairs:?}");
            }
        }
    }

    #[test]
    fn beside_an_access_token_the_cookie_holds_the_session_token() {
        let token = format!("{TOKEN_PREFIX}{}", crypto::base64url(&[1; 68]));
        let cookie = format!("session={token}");
        let session = |pairs: &[(&'static str, &str)]| Credential::session(&headers(pairs));
        assert!(matches!(
            session(&[("authorization", "Bearer a.b.c"), ("cookie", &cookie)]),
            Some(Credential::Cookie(_))
        ));
        assert!(session(&[("authorization", "Bearer a.b.c")]).is_none());
        let bearer = format!("Bearer {token}");
        assert!(matches!(
            session(&[("authorization", &bearer), ("cookie", "session=x")]),
            Some(Credential::Session(_))
        ));
        let malformed = session(&[("authorization", "Bearer st_x"), ("cookie", &cookie)]);
        assert!(matches!(malformed, Some(Credential::Malformed)));
    }

    fn gate() -> Gate {
        let keys = Keys::derive(&["seed"]).unwrap();
        Gate { sessions: Sessions::never_asked(), keys, proved: Recent::default(), ended: Recent::default() }
    }

    #[test]
    fn an_access_token_has_an_owner_until_its_session_is_found_ended() {
        let gate = gate();
        let (user, sessions) = (Uuid::now_v7(), [Uuid::now_v7(), Uuid::now_v7()]);
        let tokens = sessions.map(|session| gate.keys.sign(user, session, clock::now()).unwrap().token);
        let owner = |token: &str| gate.recognize(&Credential::Jwt(token.to_owned()));
        assert_eq!((owner(&tokens[0]), owner(&tokens[1])), (Some(user), Some(user)));
        gate.ended.remember(sessions[0], ());
        assert_eq!((owner(&tokens[0]), owner(&tokens[1])), (None, Some(user)));
    }

    #[test]
    fn a_token_has_an_owner_until_it_is_refused() {
        let gate = gate();
        let token = |byte| SessionToken::parse(&format!("{TOKEN_PREFIX}{}", crypto::base64url(&[byte; 68]))).unwrap();
        let owner = |byte| gate.recognize(&Credential::Session(token(byte)));
        gate.proved.remember(digest(&token(1)), ());
        gate.proved.remember(digest(&token(2)), ());
        assert_eq!(owner(1), Some(token(1).user_id));
        gate.proved.forget(&digest(&token(1)));
        assert_eq!((owner(1), owner(2)), (None, Some(token(2).user_id)));
    }
}
