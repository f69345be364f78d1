// SPDX-License-Identifier: Apache-2.0
//! `postern config explain`: every setting, its value, and where that came from.

use crate::failure::Failure;
use crate::output::{Output, table};
use postern_common::settings::{Explained, Settings};

/// Prints the table; secrets are `set` or absent, never shown.
#[expect(clippy::unnecessary_wraps, reason = "commands all end the same way")]
pub(super) fn explain(settings: &Settings, output: Output) -> Result<(), Failure> {
    let lines = settings.explain();
    output.answer(&lines, || as_table(&lines));
    Ok(())
}

fn as_table(lines: &[Explained]) -> String {
    let row = |line: &Explained| {
        let dash = || "-".to_owned();
        vec![
            line.key.to_owned(),
            line.value.clone().unwrap_or_else(dash),
            line.origin.clone().unwrap_or_else(dash),
            line.variable.to_owned(),
            line.about.to_owned(),
        ]
    };
    table(&["SETTING", "VALUE", "FROM", "VARIABLE", "WHAT FOR"], &lines.iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use postern_common::settings::Sources;

    #[test]
    fn every_setting_is_explained_and_no_secret_shown() {
        let environment = [("TOKEN_SIGNING_KEY".to_owned(), "0123456789abcdef0123456789abcdef".to_owned())];
        let sources = Sources { environment: environment.into(), ..Sources::default() };
        insta::assert_snapshot!(as_table(&Settings::resolve(&sources).expect("resolves").explain()));
    }
}
