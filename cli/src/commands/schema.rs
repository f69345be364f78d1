// SPDX-License-Identifier: Apache-2.0
//! `postern schema`: the JSON Schema of a file of the configuration folder, for editors.
//!
//! Put `#:schema ./backend.schema.json` on a file's first line and editors that know TOML check it
//! as it is written.

use crate::arguments::SchemaKind;
use crate::failure::Failure;
use crate::output::Output;
use postern_common::folder::{BackendFile, LimitsFile, TemplateFile};
use schemars::{Schema, schema_for};

/// Prints one schema.
#[expect(clippy::unnecessary_wraps, reason = "commands all end the same way")]
pub(super) fn run(kind: SchemaKind, output: Output) -> Result<(), Failure> {
    output.value(&schema(kind));
    Ok(())
}

fn schema(kind: SchemaKind) -> Schema {
    match kind {
        SchemaKind::Backend => schema_for!(BackendFile),
        SchemaKind::Template => schema_for!(TemplateFile),
        SchemaKind::Limits => schema_for!(LimitsFile),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemas_refuse_unknown_keys_as_the_reader_does() {
        for kind in [SchemaKind::Backend, SchemaKind::Template, SchemaKind::Limits] {
            assert_eq!(schema(kind).get("additionalProperties"), Some(&false.into()), "{kind:?}");
        }
    }
}
