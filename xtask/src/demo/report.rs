//! What the demo measured, what is expected of it, and tables of it.

use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use serde::Serialize;
use weft_integration::effect::Percentiles;

/// Version 2's share where the split gives it ten of a hundred, percent.
const SHARE_EXPECTED: std::ops::RangeInclusive<f64> = 8.0..=12.0;
/// How long a change may take to have its effect.
const EFFECT_P99_MAX_MS: f64 = 100.0;
/// Connections that may be inside the agent when it is killed: as many as are made at one time.
const CUT_MAX: u64 = 16;

/// Everything.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    pub(crate) captured_pods: usize,
    pub(crate) no_split: Answers,
    pub(crate) split_90_10: Answers,
    pub(crate) split_9_1_replicas: Answers,
    pub(crate) cookie: Answers,
    pub(crate) apply_to_effect_ms: Percentiles,
    pub(crate) restart: Vec<Restart>,
    pub(crate) ok: bool,
}

/// Who answered a phase's requests.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Answers {
    pub(crate) requests: u32,
    pub(crate) v1: u32,
    pub(crate) v2: u32,
    /// Not answered, answered by anything but 200, or answered by the wrong version.
    pub(crate) errors: u32,
}

/// What became of connections made while the agent went away.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Restart {
    pub(crate) mode: &'static str,
    pub(crate) connects: u64,
    /// Went through the agent.
    pub(crate) captured: u64,
    /// The client was refused at once.
    pub(crate) refused: u64,
    /// Went past the missing agent.
    pub(crate) direct: u64,
    /// Were inside the agent when it was killed, and ended with it.
    pub(crate) cut: u64,
    /// Neither served nor refused at once.
    pub(crate) lost: u64,
    /// Answered, but not with 200.
    pub(crate) unserved: u64,
}

impl Answers {
    fn v2_share_percent(&self) -> f64 {
        f64::from(self.v2) * 100.0 / f64::from((self.v1 + self.v2).max(1))
    }
}

impl Report {
    /// What is not as it should be.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut expect = |holds: bool, problem: String| {
            if !holds {
                problems.push(problem);
            }
        };
        expect(self.captured_pods == 7, format!("{} pods are captured, not 7", self.captured_pods));
        for (name, answers) in self.phases() {
            expect(answers.requests > 0 && answers.errors == 0, format!("{name}: {} errors", answers.errors));
        }
        for (name, answers) in [("90/10", &self.split_90_10), ("90/10 with 9:1 pods", &self.split_9_1_replicas)] {
            let share = answers.v2_share_percent();
            expect(SHARE_EXPECTED.contains(&share), format!("{name}: version 2 has {share:.1} %"));
        }
        expect(self.cookie.v1 == self.cookie.v2, "cookie: not half of the answers from each version".to_owned());
        let p99 = self.apply_to_effect_ms.p99;
        expect(p99 > 0.0 && p99 <= EFFECT_P99_MAX_MS, format!("a change takes {p99:.1} ms"));
        expect(self.restart.len() == 3, "not all outages were tried".to_owned());
        for outage in &self.restart {
            let Restart { mode, connects, captured, refused, direct, cut, lost, unserved } = *outage;
            expect(lost == 0, format!("{mode}: {lost} connections lost"));
            expect(unserved == 0, format!("{mode}: {unserved} answers were not 200"));
            expect(cut <= CUT_MAX, format!("{mode}: {cut} connections ended with the agent"));
            expect(
                match mode {
                    "open" => refused == 0 && direct > 0 && captured > 0,
                    "closed" => refused > 0 && direct == 0 && captured > 0,
                    _ => refused == 0 && direct == 0 && captured == connects,
                },
                format!("{mode}: {captured} captured, {refused} refused, {direct} direct of {connects}"),
            );
        }
        problems
    }

    fn phases(&self) -> [(&'static str, &Answers); 4] {
        [
            ("no split", &self.no_split),
            ("90/10", &self.split_90_10),
            ("cookie", &self.cookie),
            ("90/10, nine pods to one", &self.split_9_1_replicas),
        ]
    }

    /// Who answered.
    pub(crate) fn shares_table(&self) -> Table {
        let mut table = table(&["phase", "requests", "version 1", "version 2", "share of v2", "errors"]);
        for (name, answers) in self.phases() {
            let Answers { requests, v1, v2, errors } = answers;
            let share = format!("{:.1} %", answers.v2_share_percent());
            table.add_row([
                name.to_owned(),
                requests.to_string(),
                v1.to_string(),
                v2.to_string(),
                share,
                errors.to_string(),
            ]);
        }
        table
    }

    /// How fast a change works.
    pub(crate) fn effect_table(&self) -> Table {
        let mut table = table(&["from change to effect", "ms"]);
        table.add_row(["half of the changes within".to_owned(), format!("{:.1}", self.apply_to_effect_ms.p50)]);
        table.add_row(["99 % of the changes within".to_owned(), format!("{:.1}", self.apply_to_effect_ms.p99)]);
        table
    }

    /// What became of connections.
    pub(crate) fn restart_table(&self) -> Table {
        let mut table = table(&["agent gone", "connects", "captured", "refused", "direct", "cut", "lost"]);
        for outage in &self.restart {
            let Restart { mode, connects, captured, refused, direct, cut, lost, .. } = outage;
            let what = match *mode {
                "open" => "kill -9, fail open",
                "closed" => "kill -9, fail closed",
                _ => "hand-over to a new agent",
            };
            let numbers = [connects, captured, refused, direct, cut, lost].map(ToString::to_string);
            table.add_row(std::iter::once(what.to_owned()).chain(numbers));
        }
        table
    }
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(header.iter().copied());
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Report {
        let answers = |v1, v2| Answers { requests: 2_000, v1, v2, errors: 0 };
        let restart = |mode, captured, refused, direct| Restart {
            mode,
            connects: 1_500,
            captured,
            refused,
            direct,
            cut: 0,
            lost: 0,
            unserved: 0,
        };
        Report {
            captured_pods: 7,
            no_split: answers(1_000, 1_000),
            split_90_10: answers(1_800, 200),
            split_9_1_replicas: answers(1_800, 200),
            cookie: answers(1_000, 1_000),
            apply_to_effect_ms: Percentiles { p50: 5.0, p99: 9.0 },
            restart: vec![
                restart("open", 900, 0, 600),
                restart("closed", 900, 600, 0),
                restart("hand-over", 1_500, 0, 0),
            ],
            ok: false,
        }
    }

    #[test]
    fn a_good_report_has_no_problems() {
        assert_eq!(good().problems(), Vec::<String>::new());
    }

    #[test]
    fn every_figure_that_is_off_is_a_problem() {
        let spoil: [fn(&mut Report); 9] = [
            |report| report.captured_pods = 6,
            |report| report.no_split.errors = 1,
            |report| report.split_90_10.v2 = 300,
            |report| report.split_9_1_replicas.v2 = 100,
            |report| report.cookie.errors = 1,
            |report| report.apply_to_effect_ms.p99 = 101.0,
            |report| report.restart[0].lost = 1,
            |report| report.restart[1].direct = 1,
            |report| report.restart[2].captured = 1_499,
        ];
        for (number, spoil) in spoil.into_iter().enumerate() {
            let mut report = good();
            spoil(&mut report);
            assert!(!report.problems().is_empty(), "number {number}");
        }
        assert!(!Report::default().problems().is_empty());
    }
}
