// SPDX-License-Identifier: Apache-2.0
//! `[gateway.tokens]`: whose tokens a gateway that stands alone believes.

use anyhow::{Context as _, anyhow, bail};
use postern_common::session::Grant;
use postern_common::settings::{Setting, Settings, name};
use postern_common::token::issuer::{IssuerAlgorithm, IssuerKeys, IssuerRules};
use postern_gateway::issuer::{Issuer, KeySource};

/// The issuer that the settings name.
///
/// # Errors
/// What is missing or wrong, for people.
pub(crate) fn issuer(settings: &Settings) -> anyhow::Result<Issuer> {
    let needed = |setting: &Setting| {
        let text = settings.text(setting).map(ToOwned::to_owned);
        text.with_context(|| {
            format!(
                "a gateway that stands alone must be told whose tokens to believe: set {} ({})",
                setting.variable, setting.about
            )
        })
    };
    let issuer = needed(name::TOKENS_ISSUER)?;
    let audience = needed(name::TOKENS_AUDIENCE)?;
    let algorithm = needed(name::TOKENS_ALGORITHM)?;
    let algorithm: IssuerAlgorithm =
        algorithm.parse().with_context(|| name::TOKENS_ALGORITHM.variable.to_owned())?;
    let operations = settings.list(name::TOKENS_DEFAULT_OPERATIONS);
    let operations: Result<Vec<Grant>, _> = operations.iter().map(|text| text.parse()).collect();
    let rules = IssuerRules {
        issuer,
        audience,
        algorithm,
        tenant: settings.tenant().map_err(|mistake| anyhow!(mistake))?,
        user_claim: needed(name::TOKENS_USER)?,
        conversation_claim: needed(name::TOKENS_CONVERSATION)?,
        operations_claim: needed(name::TOKENS_OPERATIONS)?,
        operations: operations.with_context(|| name::TOKENS_DEFAULT_OPERATIONS.variable.to_owned())?,
    };
    Ok(Issuer::new(rules, keys(settings, algorithm)?)?)
}

/// Its keys: a secret for HS256; else key files or the URL of a key set, one of the two.
fn keys(settings: &Settings, algorithm: IssuerAlgorithm) -> anyhow::Result<KeySource> {
    let (files, set) = (settings.list(name::TOKENS_KEYS), settings.text(name::TOKENS_JWKS));
    let secret = settings.secret(name::TOKENS_SECRET);
    match (algorithm, secret, files.as_slice(), set) {
        (IssuerAlgorithm::Hs256, Some(secret), [], None) => {
            let keys = IssuerKeys::shared(secret.reveal().as_bytes());
            Ok(KeySource::Given(keys.with_context(|| name::TOKENS_SECRET.variable.to_owned())?))
        }
        (IssuerAlgorithm::Hs256, ..) => {
            bail!("HS256 takes its key from POSTERN_GATEWAY_TOKENS_SECRET_FILE, and from nothing else")
        }
        (_, None, [_, ..], None) => {
            let mut keys = IssuerKeys::default();
            for path in &files {
                let text = std::fs::read(path).with_context(|| format!("`{path}` cannot be read"))?;
                keys.add_pem(algorithm, &text).with_context(|| format!("`{path}`"))?;
            }
            Ok(KeySource::Given(keys))
        }
        (_, None, [], Some(url)) => {
            let url = url.parse().with_context(|| name::TOKENS_JWKS.variable.to_owned())?;
            Ok(KeySource::Set(url))
        }
        (_, Some(_), ..) => bail!("{algorithm} has no secret: take POSTERN_GATEWAY_TOKENS_SECRET away"),
        (_, None, [_, ..], Some(_)) => {
            bail!("POSTERN_GATEWAY_TOKENS_KEYS and POSTERN_GATEWAY_TOKENS_JWKS are both set: keep one")
        }
        (_, None, [], None) => bail!(
            "{algorithm} needs keys: set POSTERN_GATEWAY_TOKENS_KEYS to files, or POSTERN_GATEWAY_TOKENS_JWKS to a URL"
        ),
    }
}
