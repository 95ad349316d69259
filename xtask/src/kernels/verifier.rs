//! What the kernel's verifier had to do for each program, on each kernel: the nearer to its limit, the nearer a kernel is that refuses.

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};
use serde::Deserialize;

/// What a line of the test program begins with.
const MARK: &str = "weft-verifier: ";

/// One program.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Verified {
    /// Its name.
    program: String,
    /// Instructions that the verifier looked at, over all paths.
    verified_insns: u64,
    /// Size as the kernel keeps it, bytes.
    xlated_bytes: u64,
    /// Size as machine code, bytes.
    jited_bytes: u64,
    /// What the tests allow.
    budget: u64,
}

impl Verified {
    pub(super) fn parse(line: &str) -> Option<Self> {
        serde_json::from_str(line.strip_prefix(MARK)?).ok()
    }
}

/// A row for each program, a column for each kernel.
pub(super) fn table(verified: &BTreeMap<String, Vec<Verified>>) -> String {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN);
    let kernels: Vec<&String> = verified.keys().filter(|release| !release.is_empty()).collect();
    let mut header = vec!["program".to_owned(), "budget".to_owned()];
    header.extend(kernels.iter().map(|release| (*release).clone()));
    table.set_header(header);
    let mut names: Vec<(&str, u64)> =
        verified.values().flatten().map(|found| (found.program.as_str(), found.budget)).collect();
    names.sort_unstable();
    names.dedup();
    for (name, budget) in names {
        let mut row = vec![name.to_owned(), budget.to_string()];
        row.extend(kernels.iter().map(|release| {
            let found = verified[*release].iter().find(|found| found.program == name);
            found.map_or_else(
                || "-".to_owned(),
                |found| format!("{} ({} / {})", found.verified_insns, found.xlated_bytes, found.jited_bytes),
            )
        }));
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!(
        "{table}\nInstructions verified (bytes translated / bytes of machine code); the kernel's limit is 1,000,000."
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_rows_and_kernels_columns() {
        let line = |program: &str, count: u64| {
            format!(
                "weft-verifier: {{\"program\":\"{program}\",\"verified_insns\":{count},\"xlated_bytes\":80,\
                 \"jited_bytes\":60,\"budget\":9000}}"
            )
        };
        let verified = BTreeMap::from([
            ("6.1.0".to_owned(), vec![Verified::parse(&line("connect4", 700)).expect("a line")]),
            ("6.12.0".to_owned(), vec![Verified::parse(&line("connect6", 800)).expect("a line")]),
        ]);
        let table = table(&verified);
        let row = |name: &str| table.lines().find(|line| line.contains(name)).expect("a row").to_owned();
        assert!(row("connect4").contains("700 (80 / 60)") && row("connect4").contains('-'), "{table}");
        assert!(row("connect6").contains("9000") && row("connect6").contains("800 (80 / 60)"), "{table}");
        assert_eq!(Verified::parse("test a ... ok"), None);
    }
}
