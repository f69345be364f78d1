// SPDX-License-Identifier: Apache-2.0
use super::*;
use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RsaSubjectPublicKey,
};
use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::{EncodingKey, Header};
use serde_json::json;

const NOW: i64 = 1_000_000;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("in range")
}

fn pem(kind: &str, der: &[u8]) -> String {
    format!("-----BEGIN {kind}-----\n{}\n-----END {kind}-----\n", STANDARD.encode(der))
}

fn number(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A key pair of the issuer: what signs, what is published as PEM, and as a member of a set.
struct Pair {
    algorithm: IssuerAlgorithm,
    signs: EncodingKey,
    pem: String,
    jwk: Value,
}

fn ed25519() -> Pair {
    let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("random");
    let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).expect("a key");
    let public: PublicKeyX509Der<'_> = pair.public_key().as_der().expect("has a form");
    Pair {
        algorithm: IssuerAlgorithm::EdDsa,
        signs: EncodingKey::from_ed_pem(pem("PRIVATE KEY", pkcs8.as_ref()).as_bytes()).expect("a key"),
        pem: pem("PUBLIC KEY", public.as_ref()),
        jwk: json!({ "kty": "OKP", "crv": "Ed25519", "x": number(pair.public_key().as_ref()) }),
    }
}

fn p256() -> Pair {
    let kind = &ECDSA_P256_SHA256_FIXED_SIGNING;
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(kind, &SystemRandom::new()).expect("random");
    let pair = EcdsaKeyPair::from_pkcs8(kind, pkcs8.as_ref()).expect("a key");
    let public: PublicKeyX509Der<'_> = pair.public_key().as_der().expect("has a form");
    let point = pair.public_key().as_ref();
    Pair {
        algorithm: IssuerAlgorithm::Es256,
        signs: EncodingKey::from_ec_pem(pem("PRIVATE KEY", pkcs8.as_ref()).as_bytes()).expect("a key"),
        pem: pem("PUBLIC KEY", public.as_ref()),
        jwk: json!({ "kty": "EC", "crv": "P-256", "x": number(&point[1..33]), "y": number(&point[33..]) }),
    }
}

fn rsa() -> Pair {
    let pair = RsaKeyPair::generate(KeySize::Rsa2048).expect("random");
    let pkcs8: aws_lc_rs::encoding::Pkcs8V1Der<'_> = pair.as_der().expect("has a form");
    let public: &RsaSubjectPublicKey = pair.public_key();
    let spki: PublicKeyX509Der<'_> = public.as_der().expect("has a form");
    let (modulus, exponent) = (public.modulus(), public.exponent());
    Pair {
        algorithm: IssuerAlgorithm::Rs256,
        signs: EncodingKey::from_rsa_pem(pem("PRIVATE KEY", pkcs8.as_ref()).as_bytes()).expect("a key"),
        pem: pem("PUBLIC KEY", spki.as_ref()),
        jwk: json!({
            "kty": "RSA",
            "n": number(modulus.big_endian_without_leading_zero()),
            "e": number(exponent.big_endian_without_leading_zero()),
        }),
    }
}

impl Pair {
    fn token(&self, kid: Option<&str>, claims: &Value) -> String {
        let header =
            Header { kid: kid.map(ToOwned::to_owned), ..Header::new(self.algorithm.of_the_library()) };
        jsonwebtoken::encode(&header, claims, &self.signs).expect("is signed")
    }

    fn named(&self, kid: &str) -> Value {
        let mut jwk = self.jwk.clone();
        jwk["kid"] = kid.into();
        jwk
    }

    fn keys(&self) -> IssuerKeys {
        let mut keys = IssuerKeys::default();
        keys.add_pem(self.algorithm, self.pem.as_bytes()).expect("a key");
        keys
    }
}

fn set(keys: &[Value]) -> Vec<u8> {
    json!({ "keys": keys }).to_string().into_bytes()
}

fn verifier(algorithm: IssuerAlgorithm) -> IssuerVerifier {
    IssuerVerifier::new(IssuerRules {
        issuer: "https://login.example".to_owned(),
        audience: "agents".to_owned(),
        algorithm,
        tenant: TenantId::parse("acme").expect("a name"),
        user_claim: "sub".to_owned(),
        conversation_claim: "conversation_id".to_owned(),
        operations_claim: "scope".to_owned(),
        operations: vec!["desk/read".parse().expect("a grant")],
    })
}

fn claims() -> Value {
    json!({
        "iss": "https://login.example", "aud": ["agents", "others"], "sub": "alice",
        "conversation_id": "c1", "exp": NOW + 600, "iat": NOW - 5, "jti": "t1",
        "scope": "desk/read desk/createRefund",
    })
}

fn with(changes: &Value) -> Value {
    let mut all = claims();
    for (name, value) in changes.as_object().expect("an object") {
        match value {
            Value::Null => drop(all.as_object_mut().expect("an object").remove(name)),
            value => all[name] = value.clone(),
        }
    }
    all
}

#[test]
fn a_token_of_each_algorithm_is_believed_with_a_key_from_a_file_and_from_a_set() {
    for pair in [ed25519(), p256(), rsa()] {
        let verifier = verifier(pair.algorithm);
        let of_set = IssuerKeys::of_set(pair.algorithm, &set(&[pair.named("k1")])).expect("a set");
        for keys in [pair.keys(), of_set] {
            let read =
                verifier.verify(&keys, &pair.token(Some("k1"), &claims()), at(NOW)).expect("is believed");
            assert_eq!((read.user_id.as_str(), read.conversation_id.as_str()), ("alice", "c1"));
            assert_eq!((read.tenant.as_str(), read.jti.as_str()), ("acme", "t1"));
            let operations: Vec<String> = read.operations.iter().map(ToString::to_string).collect();
            assert_eq!(operations, ["desk/read", "desk/createRefund"]);
        }
    }
}

#[test]
fn the_algorithm_is_the_operators_and_never_the_tokens() {
    let (rsa, ed) = (rsa(), ed25519());
    // The public key as a shared secret: the oldest trick.
    let shared = EncodingKey::from_secret(rsa.pem.as_bytes());
    let forged = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims(), &shared).expect("is signed");
    let refused = verifier(IssuerAlgorithm::Rs256).verify(&rsa.keys(), &forged, at(NOW));
    assert_eq!(refused.expect_err("is forged"), BadToken::Forged.into());
    let refused = verifier(IssuerAlgorithm::Rs256).verify(&rsa.keys(), &ed.token(None, &claims()), at(NOW));
    assert_eq!(refused.expect_err("is another's"), BadToken::Forged.into());
    let unsigned = format!("{}.{}.", number(br#"{"alg":"none"}"#), number(claims().to_string().as_bytes()));
    assert!(verifier(IssuerAlgorithm::EdDsa).verify(&ed.keys(), &unsigned, at(NOW)).is_err());
}

#[test]
fn each_wrong_claim_is_refused_by_its_own_name() {
    let pair = ed25519();
    let verifier = verifier(pair.algorithm);
    let judge = |changes: Value| verifier.verify(&pair.keys(), &pair.token(None, &with(&changes)), at(NOW));
    assert!(judge(json!({})).is_ok(), "the control");
    for (changes, refusal) in [
        (json!({ "exp": NOW }), BadToken::Expired),
        (json!({ "exp": null }), BadToken::Malformed),
        (json!({ "exp": "soon" }), BadToken::Malformed),
        (json!({ "nbf": NOW + 60 }), BadToken::NotYetValid),
        (json!({ "iat": NOW + 60 }), BadToken::NotYetValid),
        (json!({ "iss": "https://login.example/" }), BadToken::Forged),
        (json!({ "iss": null }), BadToken::Malformed),
        (json!({ "aud": ["others"] }), BadToken::Forged),
        (json!({ "aud": null }), BadToken::Malformed),
        (json!({ "sub": null }), BadToken::Malformed),
        (json!({ "sub": 7 }), BadToken::Malformed),
        (json!({ "conversation_id": null }), BadToken::Malformed),
        (json!({ "scope": ["desk/read", 7] }), BadToken::Malformed),
        (json!({ "scope": "not an operation!" }), BadToken::Malformed),
        (json!({ "scope": ["files:sync"] }), BadToken::Forged),
    ] {
        assert_eq!(judge(changes.clone()).expect_err("is refused"), refusal.into(), "{changes}");
    }
    let other = ed25519();
    let refused = verifier.verify(&pair.keys(), &other.token(None, &claims()), at(NOW));
    assert_eq!(refused.expect_err("another's signature"), BadToken::Forged.into());
}

#[test]
fn what_a_token_leaves_out_has_a_default() {
    let pair = ed25519();
    let read = |changes: Value| {
        let token = pair.token(None, &with(&changes));
        verifier(pair.algorithm).verify(&pair.keys(), &token, at(NOW)).expect("is believed")
    };
    let bare = read(json!({ "scope": null, "jti": null, "iat": null, "exp": 1_000_600.5 }));
    assert_eq!(bare.operations, ["desk/read".parse().expect("a grant")]);
    assert_eq!((bare.exp, bare.jti.len()), (1_000_600, 43), "its digest is its id");
    assert!(read(json!({ "scope": "" })).operations.is_empty(), "the claim is there and names none");
    assert_eq!(read(json!({ "scope": ["desk/read"] })).operations.len(), 1);
}

#[test]
fn tokens_of_one_conversation_are_of_one_session_and_no_others() {
    let pair = ed25519();
    let session = |user: &str, conversation: &str| {
        let token =
            pair.token(None, &with(&json!({ "sub": user, "conversation_id": conversation, "jti": null })));
        verifier(pair.algorithm).verify(&pair.keys(), &token, at(NOW)).expect("is believed").sandbox_id
    };
    assert_eq!(session("alice", "c1"), session("alice", "c1"));
    let others =
        [session("alice", "c2"), session("bob", "c1"), session("alicec", "1"), session("alice", "c1")];
    let all: std::collections::BTreeSet<_> = others.iter().collect();
    assert_eq!(all.len(), 4);
}

#[test]
fn a_key_is_found_by_its_name_and_one_that_is_not_known_says_so() {
    let (old, new) = (ed25519(), ed25519());
    let verifier = verifier(old.algorithm);
    let before = IssuerKeys::of_set(old.algorithm, &set(&[old.named("old")])).expect("a set");
    let both = IssuerKeys::of_set(old.algorithm, &set(&[old.named("old"), new.named("new")])).expect("a set");
    let token = new.token(Some("new"), &claims());
    assert_eq!(verifier.verify(&before, &token, at(NOW)).expect_err("is new"), NotIssued::UnknownKey);
    assert!(
        verifier.verify(&both, &token, at(NOW)).is_ok()
            && verifier.verify(&both, &old.token(Some("old"), &claims()), at(NOW)).is_ok()
    );
    assert!(verifier.verify(&before, &old.token(None, &claims()), at(NOW)).is_ok(), "there is but one");
    assert_eq!(
        verifier.verify(&both, &old.token(None, &claims()), at(NOW)).expect_err("which?"),
        NotIssued::UnknownKey
    );
    let stolen_name = old.token(Some("new"), &claims());
    assert_eq!(
        verifier.verify(&both, &stolen_name, at(NOW)).expect_err("is forged"),
        BadToken::Forged.into()
    );
}

#[test]
fn a_set_gives_only_the_keys_that_fit() {
    let (ed, ec) = (ed25519(), p256());
    let mut for_encryption = ed.named("enc");
    for_encryption["use"] = "enc".into();
    let mut of_another = ed.named("other");
    of_another["alg"] = "ES256".into();
    let secret = json!({ "kty": "oct", "kid": "s", "k": number(&[7; 32]) });
    let mixed =
        set(&[for_encryption, of_another, secret, ec.named("ec"), json!({ "kty": "new" }), ed.named("ed")]);
    let keys = IssuerKeys::of_set(IssuerAlgorithm::EdDsa, &mixed).expect("one fits");
    assert_eq!(keys.0.len(), 1);
    assert_eq!(keys.0[0].0.as_deref(), Some("ed"));
    for (algorithm, json, refusal) in [
        (IssuerAlgorithm::Hs256, mixed.clone(), BadIssuerKeys::NoneFits(IssuerAlgorithm::Hs256)),
        (IssuerAlgorithm::Rs256, mixed, BadIssuerKeys::NoneFits(IssuerAlgorithm::Rs256)),
        (IssuerAlgorithm::EdDsa, b"<html>".to_vec(), BadIssuerKeys::NotASet),
        (IssuerAlgorithm::EdDsa, b"{}".to_vec(), BadIssuerKeys::NotASet),
        (IssuerAlgorithm::EdDsa, set(&vec![ed.named("k"); 65]), BadIssuerKeys::TooMany),
    ] {
        assert_eq!(IssuerKeys::of_set(algorithm, &json).expect_err("is refused"), refusal);
    }
    assert_eq!(IssuerKeys::shared(b"short").expect_err("is short"), BadIssuerKeys::ShortSecret(5));
    let wrong = IssuerKeys::default().add_pem(IssuerAlgorithm::EdDsa, ec.pem.as_bytes());
    assert_eq!(wrong.expect_err("of another kind"), BadIssuerKeys::Pem(IssuerAlgorithm::EdDsa));
}

#[test]
fn a_shared_secret_verifies_what_it_signed() {
    let secret = [9; 32];
    let token =
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims(), &EncodingKey::from_secret(&secret));
    let keys = IssuerKeys::shared(&secret).expect("long enough");
    assert!(verifier(IssuerAlgorithm::Hs256).verify(&keys, &token.expect("is signed"), at(NOW)).is_ok());
}
