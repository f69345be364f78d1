// SPDX-License-Identifier: Apache-2.0
use super::*;
use proptest::prelude::*;

const MANIFEST: &str = "phases = [\"request\"]";

struct Fixture {
    key: SigningKey,
    tenant: TenantId,
    name: FilterName,
    bytes: Vec<u8>,
}

fn engine() -> Fingerprint {
    Fingerprint::of(b"this engine")
}

fn fixture() -> Fixture {
    let key = SigningKey::from_seed(&[7; 32]).expect("a key");
    let tenant = TenantId::parse("acme").expect("a name");
    let name = FilterName::parse("guard").expect("a name");
    let compiled =
        Compiled { fingerprint: engine(), component: Digest::of(b"component"), code: b"native code" };
    let bytes = key.sign(&compiled, (&tenant, &name), 3, MANIFEST);
    Fixture { key, tenant, name, bytes }
}

fn check(
    fixture: &Fixture,
    bytes: &[u8],
    change: impl FnOnce(&mut Expected<'_>),
) -> Result<(), RefusedArtefact> {
    let mut expected =
        Expected { tenant: &fixture.tenant, name: &fixture.name, version: 3, manifest: MANIFEST };
    change(&mut expected);
    verify(bytes, &fixture.key.verifying_key(), &expected, engine()).map(|verified| {
        assert_eq!(verified.code(), b"native code");
        assert_eq!(verified.statement().component, Digest::of(b"component"));
    })
}

#[test]
fn an_artefact_that_is_what_was_signed_is_verified() {
    let fixture = fixture();
    assert_eq!(check(&fixture, &fixture.bytes, |_| {}), Ok(()));
}

#[test]
fn an_artefact_of_another_tenant_filter_version_or_manifest_is_refused() {
    let fixture = fixture();
    let (tenant, name) =
        (TenantId::parse("evil").expect("a name"), FilterName::parse("other").expect("a name"));
    assert_eq!(
        check(&fixture, &fixture.bytes, |expected| expected.version = 4),
        Err(RefusedArtefact::OtherVersion { signed: 3, announced: 4 })
    );
    assert_eq!(
        check(&fixture, &fixture.bytes, |expected| expected.manifest = "phases = [\"response\"]"),
        Err(RefusedArtefact::Manifest)
    );
    let other = Fixture { tenant, ..self::fixture() };
    assert!(matches!(check(&other, &fixture.bytes, |_| {}), Err(RefusedArtefact::OtherTenant(_))));
    let other = Fixture { name, ..self::fixture() };
    assert!(matches!(check(&other, &fixture.bytes, |_| {}), Err(RefusedArtefact::OtherName(_))));
}

#[test]
fn an_artefact_of_another_engine_or_key_is_refused() {
    let fixture = fixture();
    let expected = Expected { tenant: &fixture.tenant, name: &fixture.name, version: 3, manifest: MANIFEST };
    let other = Fingerprint::of(b"another engine");
    let refused = verify(&fixture.bytes, &fixture.key.verifying_key(), &expected, other);
    assert_eq!(refused.err(), Some(RefusedArtefact::OtherEngine(engine())));
    let stranger = SigningKey::from_seed(&[8; 32]).expect("a key").verifying_key();
    let refused = verify(&fixture.bytes, &stranger, &expected, engine());
    assert_eq!(refused.err(), Some(RefusedArtefact::Signature));
}

#[test]
fn code_that_was_swapped_after_signing_is_refused() {
    let fixture = fixture();
    let mut bytes = fixture.bytes.clone();
    *bytes.last_mut().expect("not empty") ^= 1;
    assert_eq!(check(&fixture, &bytes, |_| {}), Err(RefusedArtefact::Code));
    bytes.extend_from_slice(b"more");
    assert_eq!(check(&fixture, &bytes, |_| {}), Err(RefusedArtefact::Code));
}

#[test]
fn what_the_compiler_says_must_be_about_the_component_that_it_was_given() {
    let compiled = Compiled { fingerprint: engine(), component: Digest::of(b"mine"), code: b"code" };
    let bytes = compiled.to_bytes();
    assert_eq!(Compiled::parse(&bytes, b"mine"), Ok(compiled));
    assert_eq!(Compiled::parse(&bytes, b"yours"), Err(CompiledError::OtherComponent));
    assert_eq!(Compiled::parse(b"PSTNCMP1", b""), Err(CompiledError::Malformed));
}

proptest! {
    #[test]
    fn one_changed_byte_anywhere_is_refused(at in any::<prop::sample::Index>(), flip in 1u8..) {
        let fixture = fixture();
        let mut bytes = fixture.bytes.clone();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        let refused = check(&fixture, &bytes, |_| {});
        prop_assert!(refused.is_err());
    }

    #[test]
    fn a_truncated_artefact_is_refused(at in any::<prop::sample::Index>()) {
        let fixture = fixture();
        let end = at.index(fixture.bytes.len());
        let refused = check(&fixture, &fixture.bytes[..end], |_| {});
        prop_assert!(refused.is_err());
    }

    #[test]
    fn any_bytes_are_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let fixture = fixture();
        let refused = check(&fixture, &bytes, |_| {});
        prop_assert!(refused.is_err());
        prop_assert!(Compiled::parse(&bytes, b"").is_err());
    }
}
