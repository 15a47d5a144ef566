//! `WWW-Authenticate` (RFC 9110, 11.6.1).

use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;

/// How a registry wants us to say who we are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// With user name and password on every request.
    Basic,
    /// With a token that a token server gives.
    Bearer {
        /// URL of the token server.
        realm: String,
        /// The registry's name there.
        service: Option<String>,
        /// What the token should be for.
        scope: Option<String>,
    },
}

impl Challenge {
    /// The challenge to follow: Bearer, else Basic. None where the registry offers neither.
    pub(crate) fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let values = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let all: Vec<Raw> = values.flat_map(parse).collect();
        let bearer = all.iter().find(|raw| raw.scheme == "bearer" && raw.get("realm").is_some());
        if let Some(raw) = bearer {
            return Some(Self::Bearer {
                realm: raw.get("realm").unwrap_or_default().to_owned(),
                service: raw.get("service").map(ToOwned::to_owned),
                scope: raw.get("scope").map(ToOwned::to_owned),
            });
        }
        all.iter().any(|raw| raw.scheme == "basic").then_some(Self::Basic)
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Raw {
    scheme: String,
    parameters: Vec<(String, String)>,
}

impl Raw {
    fn get(&self, name: &str) -> Option<&str> {
        let found = self.parameters.iter().find(|(key, _)| key == name)?;
        Some(&found.1).filter(|value| !value.is_empty()).map(String::as_str)
    }
}

/// All challenges of one header value. What cannot be read ends it; what was read before counts.
fn parse(text: &str) -> Vec<Raw> {
    let mut found: Vec<Raw> = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let (word, after) = split_token(rest);
        if word.is_empty() {
            return found;
        }
        let value = after.trim_start_matches([' ', '\t']);
        match (value.strip_prefix('='), found.last_mut()) {
            (Some(value), Some(challenge)) => {
                let Some((value, after)) = split_value(value.trim_start_matches([' ', '\t'])) else {
                    return found;
                };
                challenge.parameters.push((word.to_ascii_lowercase(), value));
                rest = after;
            }
            // A parameter that belongs to no scheme.
            (Some(_), None) => return found,
            (None, _) => {
                found.push(Raw { scheme: word.to_ascii_lowercase(), parameters: Vec::new() });
                rest = after;
            }
        }
    }
}

fn split_token(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)));
    text.split_at(end.unwrap_or(text.len()))
}

/// A quoted string or a token, and what follows.
fn split_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        // Unquoted URLs have been seen: up to the next comma.
        let (value, rest) = text.split_at(text.find([',', ' ', '\t']).unwrap_or(text.len()));
        return Some((value.to_owned(), rest));
    };
    let mut value = String::new();
    let mut chars = quoted.chars();
    loop {
        match chars.next()? {
            '"' => return Some((value, chars.as_str())),
            '\\' => value.push(chars.next()?),
            other => value.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    fn challenge(values: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_str(value).unwrap());
        }
        Challenge::from_headers(&headers)
    }

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Option<Challenge> {
        let own = |text: Option<&str>| text.map(ToOwned::to_owned);
        Some(Challenge::Bearer { realm: realm.to_owned(), service: own(service), scope: own(scope) })
    }

    #[test]
    fn reads_what_registries_send() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#;
        let expected = bearer(
            "https://auth.docker.io/token",
            Some("registry.docker.io"),
            Some("repository:a/b:pull,push"),
        );
        assert_eq!(challenge(&[hub]), expected);
        assert_eq!(challenge(&[r#"Basic realm="Registry Realm""#]), Some(Challenge::Basic));
        assert_eq!(challenge(&["basic"]), Some(Challenge::Basic));
        assert_eq!(
            challenge(&[r#"BEARER Realm = "http://x/t?a=1,2" , error="invalid_token""#]),
            bearer("http://x/t?a=1,2", None, None)
        );
        assert_eq!(
            challenge(&["Bearer realm=https://x/t,service=s"]),
            bearer("https://x/t", Some("s"), None)
        );
        assert_eq!(challenge(&[r#"Bearer realm="a\"b\\c""#]), bearer("a\"b\\c", None, None));
    }

    #[test]
    fn prefers_bearer_wherever_it_stands() {
        let expected = bearer("https://x", None, None);
        assert_eq!(challenge(&[r#"Basic realm="r", Bearer realm="https://x""#]), expected);
        assert_eq!(challenge(&[r#"Basic realm="r""#, r#"Bearer realm="https://x""#]), expected);
        assert_eq!(
            challenge(&[r#"Negotiate, Basic realm="r", Bearer service="no realm""#]),
            Some(Challenge::Basic)
        );
    }

    #[test]
    fn others_are_none() {
        for text in [
            "",
            "Negotiate",
            "Negotiate abc==",
            r#"realm="x""#,
            r#"Bearer realm="x"#,
            "Bearer",
            ", ,",
            "Digest a=b",
        ] {
            assert_eq!(challenge(&[text]), None, "{text}");
        }
        assert_eq!(challenge(&[]), None);
    }

    proptest! {
        #[test]
        fn never_hangs_or_panics(text in "[ -~\t]{0,80}") {
            parse(&text);
        }
    }
}
