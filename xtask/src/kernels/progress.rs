//! What libtest writes, told shortly while it runs and counted at the end.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::test::{Totals, parse_result};

/// Tests in one line of dots.
const DOTS_MAX: usize = 100;
/// How many of the slowest tests are named, and from when on a test is slow.
const SLOWEST: usize = 3;
const SLOW: Duration = Duration::from_secs(5);

/// Follows one run.
pub(super) struct Progress {
    name: String,
    started: Instant,
    dots: usize,
    totals: Option<Totals>,
    failing: bool,
    last: Instant,
    times: Vec<(Duration, String)>,
    tail: Vec<String>,
}

impl Progress {
    pub(super) fn new(name: &str) -> Self {
        let now = Instant::now();
        Self {
            name: name.to_owned(),
            started: now,
            dots: 0,
            totals: None,
            failing: false,
            last: now,
            times: Vec::new(),
            tail: Vec::new(),
        }
    }

    /// Takes a line of output.
    pub(super) fn line(&mut self, line: &str) {
        if let Some((test, result)) = parse_test(line) {
            let now = Instant::now();
            self.times.push((now - self.last, test.to_owned()));
            self.last = now;
            match result {
                Outcome::Passed => self.dot("."),
                Outcome::Ignored => self.dot("i"),
                Outcome::Failed => {
                    self.end_dots();
                    println!("{}: {test} FAILED", self.name);
                }
            }
            return;
        }
        if line.starts_with("running ") {
            self.last = Instant::now();
        }
        if let Some(counts) = parse_result(line) {
            self.totals = Some(counts);
            self.failing = false;
            return;
        }
        // What failed is told in full, with the reason.
        self.failing |= line == "failures:";
        if self.failing {
            self.end_dots();
            println!("{}: {line}", self.name);
        }
        self.tail.push(line.to_owned());
    }

    /// The counts.
    ///
    /// # Errors
    /// When there was no result: the program crashed, or never began.
    pub(super) fn finish(mut self) -> Result<Totals> {
        self.end_dots();
        let Some(totals) = self.totals else {
            let from = self.tail.len().saturating_sub(20);
            return Err(anyhow::anyhow!("{}", self.tail[from..].join("\n")))
                .with_context(|| format!("{}: the tests ended without a result", self.name));
        };
        self.times.sort_unstable_by(|left, right| right.cmp(left));
        let slow: Vec<String> = self
            .times
            .iter()
            .take_while(|(time, _)| *time >= SLOW)
            .take(SLOWEST)
            .map(|(time, test)| format!("{test} {:.0} s", time.as_secs_f64()))
            .collect();
        let slowest = if slow.is_empty() { String::new() } else { format!("; slowest: {}", slow.join(", ")) };
        println!("{}: {totals}, {:.0} s{slowest}", self.name, self.started.elapsed().as_secs_f64());
        Ok(totals)
    }

    fn dot(&mut self, dot: &str) {
        if self.dots == 0 {
            print!("{}: ", self.name);
        }
        print!("{dot}");
        self.dots += 1;
        if self.dots == DOTS_MAX {
            self.end_dots();
        }
        std::io::stdout().flush().ok();
    }

    fn end_dots(&mut self) {
        if self.dots > 0 {
            println!();
            self.dots = 0;
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed,
    Ignored,
}

/// `test outbound::a_name ... ok`. Between the name and the result there can be what a test wrote past libtest.
fn parse_test(line: &str) -> Option<(&str, Outcome)> {
    let (name, rest) = line.strip_prefix("test ")?.split_once(" ... ")?;
    let outcome = match rest {
        rest if rest.ends_with("ok") => Outcome::Passed,
        rest if rest.ends_with("FAILED") => Outcome::Failed,
        rest if rest.starts_with("ignored") => Outcome::Ignored,
        _ => return None,
    };
    Some((name, outcome))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_tests_are_read() {
        assert_eq!(parse_test("test a::b ... ok"), Some(("a::b", Outcome::Passed)));
        assert_eq!(parse_test("test a::b ... FAILED"), Some(("a::b", Outcome::Failed)));
        assert_eq!(parse_test("test a::b ... ignored, for a reason"), Some(("a::b", Outcome::Ignored)));
        assert_eq!(parse_test("test result: ok. 5 passed; 0 failed"), None);
    }

    #[test]
    fn output_without_a_result_is_an_error_with_its_end() {
        let mut progress = Progress::new("6.1");
        progress.line("running 2 tests");
        progress.line("test a::b ... ok");
        progress.line("Segmentation fault");
        let error = format!("{:#}", progress.finish().expect_err("no result"));
        assert!(error.contains("6.1") && error.contains("Segmentation fault"), "{error}");
    }
}
