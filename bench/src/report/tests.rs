use serde_json::json;

use super::*;
use crate::row::ROWS;

fn measured(cpu: &[f64], share: f64) -> Measured {
    let samples = cpu
        .iter()
        .map(|cpu| Sample {
            cpu_us_sat: *cpu,
            cpu_us_2k: 2.0 * cpu,
            path_cpu_us_2k: 4.0 * cpu,
            p50_us: 10.0 * cpu,
            rps_max: 1e6 / cpu,
            proxy_busy: 1.0,
            share_percent: share,
            ..Sample::default()
        })
        .collect();
    let memory = |mb: u64| Memory { rss: mb << 20, current: Some((mb + 1) << 20), sock: None };
    let memory = MemorySample { idle: memory(7), held_1k: memory(8), held_5k: memory(9) };
    Measured { samples, memory: Some(memory), syscalls: Some(5.5) }
}

fn report() -> Report {
    let row = |name: &str| ROWS.into_iter().find(|row| row.name == name).expect("a row");
    let measured = [
        (row(DIRECT), measured(&[5.0, 5.0, 5.0], 50.0)),
        (row(WEFT), measured(&[20.0, 10.0, 18.0], 90.2)),
        (row(ENVOY), measured(&[40.0, 40.0, 30.0], 89.5)),
    ];
    Report::new(
        &measured,
        json!({"cores": 2}),
        json!({"route find, 1 route": {"median_ns": 12.5, "instructions": 1234}}),
    )
}

#[test]
fn the_json_has_the_keys_that_readers_know() {
    let json = serde_json::to_value(report()).expect("JSON");
    let row = &json["rows"][1];
    for key in [
        "name",
        "cpu_us_sat",
        "cpu_us_2k",
        "p50_us",
        "p99_us",
        "rps_max",
        "rss_idle_mb",
        "rss_1k_mb",
        "rss_5k_mb",
        "syscalls",
        "n",
        "spread",
    ] {
        assert!(!row[key].is_null(), "{key} in {row}");
    }
    assert_eq!(row["name"], WEFT);
    assert_eq!((&row["n"], &row["rss_1k_mb"]), (&json!(3), &json!(8.0)));
    assert_eq!(json["micro"]["route find, 1 route"]["median_ns"], json!(12.5));
    assert_eq!(json["machine"]["cores"], json!(2));
}

#[test]
fn figures_are_medians_and_ratios_are_taken_round_by_round() {
    let report = report();
    let weft = report.row(WEFT).expect("weft");
    assert_eq!(weft.medians.cpu_us_sat, 18.0);
    // 20/40, 10/40, 18/30.
    assert_eq!(weft.ratio_envoy_sat, Some(0.5));
    assert_eq!(weft.ratio_direct_p50, Some(3.6));
    assert_eq!(weft.ranges["cpu_us_sat"], [10.0, 20.0]);
    assert!((weft.spread - 10.0 / 18.0).abs() < 1e-9);
    assert!(report.verdict().expect("a verdict").ends_with("is met."));
}

#[test]
fn a_wrong_split_and_lost_requests_are_problems() {
    assert_eq!(report().problems, Vec::<String>::new());
    let row = ROWS.into_iter().find(|row| row.name == WEFT).expect("a row");
    let mut wrong = measured(&[20.0], 50.0);
    wrong.samples[0].errors = 3;
    let report = Report::new(&[(row, wrong)], Value::Null, Value::Null);
    assert_eq!(report.problems.len(), 2, "{:?}", report.problems);
    assert!(report.verdict().is_none());
}

#[test]
fn the_table_is_aligned_markdown() {
    let text = report().markdown();
    for block in text.split("\n\n") {
        let widths: Vec<usize> = block.lines().map(|line| line.chars().count()).collect();
        assert!(widths.windows(2).all(|pair| pair[0] == pair[1]), "{block}");
    }
    assert!(text.contains(" 1,234 |"), "{text}");
}

#[test]
fn an_even_number_of_rounds_has_a_median_too() {
    assert_eq!(median([1.0, 4.0, 2.0, 3.0].into_iter()), 2.5);
    assert_eq!(median(std::iter::empty()), 0.0);
}
