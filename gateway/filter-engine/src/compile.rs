// SPDX-License-Identifier: Apache-2.0
//! From an uploaded component to compiled code. For `postern-compile` and tests: what comes in is
//! hostile, and the compiler is large, so this runs in a process that can do nothing else.

use crate::artefact::Compiled;
use crate::contract::{self, Import};
use crate::digest::Digest;
use crate::settings;
use wasmparser::{ComponentTypeRef, Parser, Payload, TypeBounds, Validator, WasmFeatures};

/// The largest component; the configuration folder takes no larger one.
pub const MAX_COMPONENT_BYTES: usize = 64 * 1024 * 1024;

/// The interfaces that a component may import, of a contract that is served.
const INTERFACES: [&str; 9] =
    ["types", "request", "response", "config", "session", "log", "counter", "rate-limit", "json-schema"];
/// What it must export.
const EXPORTS: [&str; 2] = ["on-request", "on-response"];

/// Why a component was not compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// It is too large.
    #[error("the component is larger than 64 MiB; build it with `--release` and strip it")]
    TooLarge,
    /// It is no WebAssembly.
    #[error("this is no WebAssembly; push the `.wasm` that `postern filter build` makes")]
    NotWasm,
    /// It is a core module that cannot become a component.
    #[error("the core module could not be wrapped as a component ({0}); build it with sdk-wasm")]
    Wrap(String),
    /// It is a component that is malformed.
    #[error("the component is malformed: {0}")]
    Malformed(String),
    /// It imports what filters do not get.
    #[error(
        "the component imports `{0}`, which filters do not get; build it for wasm32-unknown-unknown with sdk-wasm"
    )]
    ForbiddenImport(String),
    /// It was built against a contract that this host does not keep.
    #[error(
        "the component imports `{0}`, and filters are run by postern:filter@{major}.{minor} here; upgrade Postern, or build it with the SDK of this release",
        major = contract::MAJOR,
        minor = contract::MINOR
    )]
    OtherContract(String),
    /// It does not export what a filter must.
    #[error("the component exports no `{0}`; implement `Filter` and call `register!`")]
    MissingExport(&'static str),
    /// The compiler refuses it.
    #[error("the component does not compile: {0}")]
    Compiler(String),
    /// The compiler could not be made.
    #[error("the compiler could not be set up: {0}")]
    Setup(String),
}

impl CompileError {
    /// A stable name for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::TooLarge => "too-large",
            Self::NotWasm => "not-wasm",
            Self::Wrap(_) => "not-a-filter",
            Self::Malformed(_) => "malformed",
            Self::ForbiddenImport(_) => "forbidden-import",
            Self::OtherContract(_) => "other-contract",
            Self::MissingExport(_) => "missing-export",
            Self::Compiler(_) => "does-not-compile",
            Self::Setup(_) => "setup",
        }
    }
}

/// Makes a component of a core module that carries its own description, as sdk-wasm's do.
///
/// # Errors
/// [`CompileError::Wrap`] if it carries none, or is not what it describes.
pub fn wrap(module: &[u8]) -> Result<Vec<u8>, CompileError> {
    wit_component::ComponentEncoder::default()
        .validate(true)
        .module(module)
        .and_then(|mut encoder| encoder.encode())
        .map_err(|error| CompileError::Wrap(bounded(&format!("{error:#}"))))
}

/// Compiles an uploaded component, or a core module that [`wrap`] takes, for this engine. What
/// comes back is [`Compiled`] in its byte form, with the digest of the bytes as uploaded.
///
/// # Errors
/// [`CompileError`] says what is wrong with it.
pub fn compile(uploaded: &[u8]) -> Result<Vec<u8>, CompileError> {
    if uploaded.len() > MAX_COMPONENT_BYTES {
        return Err(CompileError::TooLarge);
    }
    if !Parser::is_component(uploaded) && !Parser::is_core_wasm(uploaded) {
        return Err(CompileError::NotWasm);
    }
    // First of all: the crates behind `wrap` trust what they read.
    Validator::new_with_features(WasmFeatures::default())
        .validate_all(uploaded)
        .map_err(|error| CompileError::Malformed(bounded(error.message())))?;
    let wrapped;
    let component = if Parser::is_component(uploaded) {
        uploaded
    } else {
        wrapped = wrap(uploaded)?;
        &wrapped
    };
    inspect(component)?;
    let setup = |error: wasmtime::Error| CompileError::Setup(bounded(&format!("{error:#}")));
    let config = settings::compiling().map_err(setup)?;
    let engine = wasmtime::Engine::new(&config).map_err(setup)?;
    let code = engine
        .precompile_component(component)
        .map_err(|error| CompileError::Compiler(bounded(&format!("{error:#}"))))?;
    let compiled =
        Compiled { fingerprint: settings::fingerprint(), component: Digest::of(uploaded), code: &code };
    Ok(compiled.to_bytes())
}

/// Looks at what a component imports and exports, without compiling anything.
///
/// # Errors
/// [`CompileError`] names the first import that filters do not get, or the export that is missing.
pub fn inspect(component: &[u8]) -> Result<(), CompileError> {
    let malformed = |error: wasmparser::BinaryReaderError| CompileError::Malformed(bounded(error.message()));
    let mut missing = EXPORTS.to_vec();
    let mut depth = 0_usize;
    for payload in Parser::new(0).parse_all(component) {
        match payload.map_err(malformed)? {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentImportSection(imports) if depth == 0 => {
                for import in imports {
                    let import = import.map_err(malformed)?;
                    // The world's own types: names for what `types` holds, nothing to call.
                    let is_name = matches!(import.ty, ComponentTypeRef::Type(TypeBounds::Eq(_)));
                    if !is_name {
                        judge(import.name.name)?;
                    }
                }
            }
            Payload::ComponentExportSection(exports) if depth == 0 => {
                for export in exports {
                    let name = export.map_err(malformed)?.name.name;
                    missing.retain(|wanted| *wanted != name);
                }
            }
            _ => {}
        }
    }
    missing.first().map_or(Ok(()), |export| Err(CompileError::MissingExport(export)))
}

/// Whether filters get what is imported, in the version that is wanted.
fn judge(import: &str) -> Result<(), CompileError> {
    match Import::parse(import) {
        // A newer contract may have interfaces that are unknown here: that it is newer is the reason.
        Some(ours) if !ours.is_served() => Err(CompileError::OtherContract(bounded(import))),
        Some(ours) if INTERFACES.contains(&ours.interface) => Ok(()),
        _ => Err(CompileError::ForbiddenImport(bounded(import))),
    }
}

/// Messages of the crates quote their input.
fn bounded(message: &str) -> String {
    let line = |character: char| if character.is_control() { ' ' } else { character };
    message.chars().map(line).take(500).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_webassembly_is_refused() {
        for bytes in [&b""[..], b"hello", b"\0asm", b"\0asm\x07\0\0\0"] {
            assert!(matches!(compile(bytes), Err(CompileError::NotWasm)), "{bytes:?}");
        }
    }

    #[test]
    fn a_core_module_that_describes_no_filter_is_refused() {
        let error = compile(b"\0asm\x01\0\0\0").expect_err("is refused");
        assert!(matches!(error, CompileError::Wrap(_) | CompileError::MissingExport(_)), "{error}");
    }

    #[test]
    fn an_empty_component_lacks_the_exports() {
        let error = compile(b"\0asm\x0d\0\x01\0").expect_err("is refused");
        assert!(matches!(error, CompileError::MissingExport("on-request")), "{error}");
    }

    #[test]
    fn imports_are_ours_by_package_interface_and_version() {
        assert!(judge("postern:filter/request@1.0.0").is_ok() && judge("postern:filter/log@1.0.1").is_ok());
        for foreign in
            ["wasi:clocks/wall-clock@0.2.0", "postern:filter/network@1.0.0", "postern:filter/request", "env"]
        {
            let refused = judge(foreign);
            assert!(
                matches!(&refused, Err(CompileError::ForbiddenImport(it)) if it == foreign),
                "{refused:?}"
            );
        }
        for other in ["postern:filter/request@1.3.0", "postern:filter/new@1.1.0", "postern:filter/log@2.0.0"]
        {
            let refused = judge(other);
            assert!(matches!(&refused, Err(CompileError::OtherContract(it)) if it == other), "{refused:?}");
        }
    }
}
