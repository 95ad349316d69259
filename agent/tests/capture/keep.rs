//! What outlives an agent.

use std::{os::unix::fs::PermissionsExt, sync::atomic::AtomicBool, sync::atomic::Ordering, thread};

use weft_agent::capture::{cleanup, limits};

use crate::world::World;

#[test]
fn what_is_kept_outlives_the_agent_and_goes_with_weft() {
    let Some(world) = World::new() else { return };
    let keep = world.open().keep();
    assert_eq!(keep.get("a").expect("read"), None);
    let largest: Vec<u8> = (0..limits::KEEP_VALUE_BYTES_MAX).map(|index| (index % 251) as u8).collect();
    let longest = "n".repeat(limits::KEEP_NAME_BYTES_MAX);
    for (name, value) in [("a", &b"one"[..]), ("b", &[]), ("a", b"two"), (&longest, &largest)] {
        keep.put(name, value).expect("kept");
    }
    let error = keep.put("a", &[0; limits::KEEP_VALUE_BYTES_MAX + 1]).expect_err("too large");
    assert_eq!((error.reason(), error.retryable()), ("too_large", false));
    let pin = world.config.bpf_dir.join(format!("v{}/KEEP", weft_abi::ABI_VERSION));
    assert_eq!(std::fs::metadata(&pin).expect("pinned").permissions().mode() & 0o777, 0o600);
    drop(keep);

    let capture = world.open();
    let keep = capture.keep();
    let mut names = keep.names().expect("listed");
    names.sort();
    assert_eq!(names, ["a", "b", &longest]);
    for (name, value) in [("a", &b"two"[..]), ("b", &[]), (&longest, &largest)] {
        assert_eq!(keep.get(name).expect("read").as_deref(), Some(value), "{name}");
    }
    assert_eq!(crate::outbound::fill(&capture, "KEEP"), 3);
    assert!(keep.remove("b").expect("removed"));
    assert!(!keep.remove("b").expect("nothing to remove"));
    assert_eq!(keep.get("b").expect("read"), None);
    drop((keep, capture));

    assert!(cleanup(&world.config).expect("cleaned").complete());
    assert!(!world.config.bpf_dir.exists());
    assert_eq!(world.open().keep().get("a").expect("read"), None);
}

#[test]
fn a_full_keep_says_so_and_has_room_again_after_one_is_removed() {
    let Some(world) = World::new() else { return };
    let capture = world.open();
    let keep = capture.keep();
    for index in 0..limits::KEEP_ENTRIES_MAX {
        keep.put(&format!("account/{index}"), &index.to_le_bytes()).expect("kept");
    }
    let error = keep.put("one more", b"").expect_err("full");
    assert_eq!((error.reason(), error.retryable()), ("full", true));
    assert!(error.to_string().contains("weft_capture_map_entries"), "{error}");
    // One that is there can be replaced all the same.
    keep.put("account/7", b"new").expect("kept");
    assert_eq!(keep.get("account/7").expect("read").as_deref(), Some(&b"new"[..]));
    assert!(keep.remove("account/8").expect("removed"));
    keep.put("one more", b"").expect("kept");
    assert_eq!(crate::outbound::fill(&capture, "KEEP"), u64::from(limits::KEEP_ENTRIES_MAX));
}

#[test]
fn what_is_read_while_another_agent_writes_it_is_one_value_or_the_other() {
    let Some(world) = World::new() else { return };
    let (old, new) = (world.open(), world.open());
    let values = [vec![1_u8; limits::KEEP_VALUE_BYTES_MAX], vec![2_u8; 4096]];
    let (writer, reader) = (old.keep(), new.keep());
    writer.put("a", &values[0]).expect("kept");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for index in 0..20_000 {
                writer.put("a", &values[index % 2]).expect("kept");
            }
            done.store(true, Ordering::Release);
        });
        let mut seen = [0_u32; 2];
        while !done.load(Ordering::Acquire) {
            let value = reader.get("a").expect("whole").expect("there");
            let index = values.iter().position(|known| *known == value).expect("one or the other");
            seen[index] += 1;
        }
        assert!(seen[0] + seen[1] > 0);
    });
}
