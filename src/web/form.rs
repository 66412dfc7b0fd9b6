//! The one form that callers send: a token (RFC 7662 §2.1, RFC 7009 §2.1).

use std::fmt;

use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use zeroize::Zeroizing;

/// A token out of a form. It is a bearer secret: wiped, and never printed.
pub(super) struct Token(Zeroizing<String>);

impl Token {
    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// The form is not one, has no token, or a parameter twice (RFC 6749 §3.1).
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum BadForm {
    #[error("send `application/x-www-form-urlencoded`")]
    Type,
    #[error("send a parameter `token`")]
    NoToken,
    #[error("a parameter occurs twice")]
    Twice,
}

/// The token in a body. `token_type_hint` may be there and changes nothing: there is one type of token.
pub(super) fn token(headers: &HeaderMap, body: &[u8]) -> Result<Token, BadForm> {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
        return Err(BadForm::Type);
    }
    let (mut token, mut hint) = (None, false);
    for (name, value) in form_urlencoded::parse(body) {
        match &*name {
            "token" if token.is_some() => return Err(BadForm::Twice),
            "token" => token = Some(Token(Zeroizing::new(value.into_owned()))),
            "token_type_hint" if hint => return Err(BadForm::Twice),
            "token_type_hint" => hint = true,
            _ => {}
        }
    }
    token.filter(|token| !token.0.is_empty()).ok_or(BadForm::NoToken)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn read(kind: &'static str, body: &[u8]) -> Result<String, BadForm> {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(kind))]);
        token(&headers, body).map(|token| token.expose().to_owned())
    }

    const FORM: &str = "application/x-www-form-urlencoded";

    #[test]
    fn one_token_and_nothing_twice() {
        assert_eq!(read(FORM, b"token=a.b.c").as_deref(), Ok("a.b.c"));
        assert_eq!(
            read("Application/X-WWW-Form-Urlencoded; charset=UTF-8", b"x=1&token=%61").as_deref(),
            Ok("a")
        );
        assert_eq!(read(FORM, b"token_type_hint=refresh_token&token=a").as_deref(), Ok("a"));
        for (kind, body, wrong) in [
            (FORM, "token=a&token=b", BadForm::Twice),
            (FORM, "token=a&%74oken=a", BadForm::Twice),
            (FORM, "token=a&token_type_hint=x&token_type_hint=y", BadForm::Twice),
            (FORM, "", BadForm::NoToken),
            (FORM, "token", BadForm::NoToken),
            (FORM, "token=", BadForm::NoToken),
            (FORM, "Token=a", BadForm::NoToken),
            ("application/json", "token=a", BadForm::Type),
            ("", "token=a", BadForm::Type),
        ] {
            assert_eq!(read(kind, body.as_bytes()), Err(wrong), "{body}");
        }
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(FORM))]);
        assert_eq!(format!("{:?}", token(&headers, b"token=secret").unwrap()), "Token(..)");
    }

    proptest! {
        #[test]
        fn no_octets_make_it_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            read(FORM, &body).ok();
        }

        #[test]
        fn a_token_comes_out_as_it_went_in(text in "[ -~]{1,60}") {
            let body: String = form_urlencoded::Serializer::new(String::new()).append_pair("token", &text).finish();
            prop_assert_eq!(read(FORM, body.as_bytes()), Ok(text));
        }
    }
}
