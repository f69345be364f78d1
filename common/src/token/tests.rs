// SPDX-License-Identifier: Apache-2.0
use super::*;
use jiff::ToSpan as _;
use serde_json::json;

fn at() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().expect("a time")
}

fn key(fill: u8) -> SigningKey {
    SigningKey::new(vec![fill; 48]).expect("long enough")
}

fn claims() -> Claims {
    let sandbox = SandboxId::from_random([7; 12]);
    Claims {
        iss: ISSUER.into(),
        aud: AUDIENCE.into(),
        sub: sandbox.clone(),
        sandbox_id: sandbox,
        tenant: TenantId::parse("acme").expect("a name"),
        user_id: UserId::parse("alice").expect("an id"),
        conversation_id: ConversationId::parse("c1").expect("an id"),
        operations: vec!["desk/read".parse().expect("a grant")],
        jti: "j1".into(),
        iat: unix_seconds(at()),
        nbf: unix_seconds(at()),
        exp: unix_seconds(at()) + 3600,
    }
}

fn minted(claims: &Claims) -> String {
    key(1).mint(claims).expect("signs").reveal().clone()
}

/// A token with any header and payload, signed with `key` as HS256.
fn raw(header: &serde_json::Value, payload: &serde_json::Value, key: &[u8]) -> String {
    let signed = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(header.to_string()),
        URL_SAFE_NO_PAD.encode(payload.to_string())
    );
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, key);
    let tag = aws_lc_rs::hmac::sign(&key, signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag.as_ref()))
}

#[test]
fn a_minted_token_verifies_until_it_expires() {
    let verifier = Verifier::new([&key(1)]);
    let token = minted(&claims());
    assert_eq!(verifier.verify(&token, at()), Ok(claims()));
    assert!(verifier.verify(&token, at() + 3599.seconds()).is_ok());
    assert_eq!(verifier.verify(&token, at() + 3600.seconds()), Err(BadToken::Expired));
}

#[test]
fn clock_skew_widens_the_beginning_and_nothing_else() {
    let verifier = Verifier::new([&key(1)]);
    let token = minted(&claims());
    assert!(verifier.verify(&token, at() - 5.seconds()).is_ok());
    assert_eq!(verifier.verify(&token, at() - 6.seconds()), Err(BadToken::NotYetValid));
}

#[test]
fn a_replaced_key_still_verifies_and_an_unknown_one_does_not() {
    let token = minted(&claims());
    assert!(Verifier::new([&key(2), &key(1)]).verify(&token, at()).is_ok());
    assert_eq!(Verifier::new([&key(2)]).verify(&token, at()), Err(BadToken::Forged));
    assert_eq!(Verifier::new([]).verify(&token, at()), Err(BadToken::Forged));
}

#[test]
fn every_changed_byte_is_noticed() {
    let verifier = Verifier::new([&key(1)]);
    let token = minted(&claims());
    for index in 0..token.len() {
        let mut bytes = token.clone().into_bytes();
        bytes[index] = if bytes[index] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(bytes).expect("still ASCII");
        // The last character of a base64 text may hold spare bits; a strict decoder refuses those too.
        assert!(verifier.verify(&changed, at()).is_err(), "byte {index}");
    }
}

#[test]
fn the_token_cannot_choose_its_algorithm_or_key() {
    let verifier = Verifier::new([&key(1)]);
    let payload = serde_json::to_value(claims()).expect("serializes");
    let kid = key(1).kid().to_owned();
    let forged = [
        raw(&json!({"alg": "none", "kid": kid}), &payload, &[1; 48]),
        raw(&json!({"alg": "HS512", "kid": kid}), &payload, &[1; 48]),
        raw(&json!({"alg": "HS256"}), &payload, &[1; 48]),
        raw(&json!({"alg": "HS256", "kid": "other"}), &payload, &[1; 48]),
        raw(&json!({"alg": "HS256", "kid": kid}), &payload, &[9; 48]),
        raw(&json!({"alg": "HS256", "kid": kid, "jwk": {"kty": "oct", "k": "AAAA"}}), &payload, b""),
    ];
    for token in forged {
        assert!(
            matches!(verifier.verify(&token, at()), Err(BadToken::Forged | BadToken::Malformed)),
            "{token}"
        );
    }
}

#[test]
fn issuer_audience_subject_and_span_must_be_ours() {
    let verifier = Verifier::new([&key(1)]);
    let changes: [fn(&mut Claims); 4] = [
        |claims| claims.iss = "somebody".into(),
        |claims| claims.aud = "elsewhere".into(),
        |claims| claims.sub = SandboxId::from_random([8; 12]),
        |claims| claims.exp += 1,
    ];
    for (number, change) in changes.iter().enumerate() {
        let mut claims = claims();
        change(&mut claims);
        assert_eq!(verifier.verify(&minted(&claims), at()), Err(BadToken::Forged), "change {number}");
    }
}

#[test]
fn what_is_no_token_is_malformed_and_costs_little() {
    let verifier = Verifier::new([&key(1)]);
    for text in ["", ".", "..", "a.b.c", "Bearer x", "ä.ö.ü", &"x".repeat(MAX_TOKEN_BYTES + 1)] {
        assert_eq!(verifier.verify(text, at()), Err(BadToken::Malformed), "{text:.20}");
    }
    let header = json!({"alg": "HS256", "kid": key(1).kid()});
    let token = raw(&header, &json!({"iss": ISSUER, "aud": AUDIENCE}), &[1; 48]);
    assert_eq!(verifier.verify(&token, at()), Err(BadToken::Malformed));
}

#[test]
fn weak_keys_are_refused_with_the_remedy() {
    assert_eq!(SigningKey::new(vec![1; 31]).expect_err("short"), WeakKey::TooShort(31));
    assert_eq!(SigningKey::new(SAMPLE_KEY.into()).expect_err("sample"), WeakKey::Sample);
    assert!(WeakKey::Sample.to_string().contains("openssl rand"));
}

#[test]
fn debug_output_of_keys_shows_no_key() {
    let key = SigningKey::new(b"0123456789-0123456789-0123456789".to_vec()).expect("long enough");
    let shown = format!("{key:?} {:?}", Verifier::new([&key]));
    assert!(!shown.contains("0123456789") && !shown.contains("48, 49"), "{shown}");
}
