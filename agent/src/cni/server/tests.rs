use std::{
    fs::File,
    io::{Read, Write},
    os::fd::AsFd,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    time::Duration,
};

use prometheus::Registry;

use super::*;
use crate::{
    admin::server::bind_socket,
    cni::{ask, protocol::CNI_SOCKET},
};

struct Served {
    announced: mpsc::Receiver<Announcement>,
    path: PathBuf,
    metrics: CniMetrics,
    _directory: tempfile::TempDir,
}

fn serving() -> Served {
    let directory = tempfile::tempdir().unwrap();
    let (sender, announced) = mpsc::channel(4);
    let metrics = CniMetrics::register(&Registry::new()).unwrap();
    tokio::spawn(serve(bind_socket(directory.path(), CNI_SOCKET).unwrap(), sender, metrics.clone()));
    Served { announced, path: directory.path().join(CNI_SOCKET), metrics, _directory: directory }
}

fn question(ips: usize) -> Question {
    let ips = (0..ips).map(|index| std::net::Ipv6Addr::from(u128::MAX - index as u128).into()).collect();
    Question { namespace: "shop".to_owned(), name: "web".to_owned(), uid: Some("u".to_owned()), ips }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_namespace_arrives_and_the_answer_goes_back() {
    let mut served = serving();
    for answer in
        [Answer::Captured, Answer::NotMeshed, Answer::NotCaptured { reason: "a \"reason\"\nof two lines".to_owned() }]
    {
        let path = served.path.clone();
        // More than one read.
        let asked = question(limits::CNI_ADDRESSES_MAX);
        let plugin = tokio::task::spawn_blocking(move || {
            let netns = File::open("/proc/self/ns/net").unwrap();
            ask::ask(&path, &asked, netns.as_fd(), Duration::from_secs(60)).unwrap()
        });
        let announced = served.announced.recv().await.unwrap();
        assert_eq!(announced.question, question(limits::CNI_ADDRESSES_MAX));
        let inode = File::from(announced.netns).metadata().unwrap().ino();
        assert_eq!(inode, std::fs::metadata("/proc/self/ns/net").unwrap().ino());
        announced.answer.send(answer.clone()).unwrap();
        assert_eq!(plugin.await.unwrap(), answer);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_question_is_counted_and_the_connection_closed() {
    let served = serving();
    let whole = serde_json::to_string(&question(1)).unwrap();
    for (index, text) in
        ["\n", "{}\n", "half", &format!("{whole}\n"), &"x".repeat(limits::CNI_MESSAGE_BYTES_MAX + 2000)]
            .into_iter()
            .enumerate()
    {
        // The fourth is whole, but no descriptor comes with it.
        let mut stream = std::os::unix::net::UnixStream::connect(&served.path).unwrap();
        // The agent may close before it has read all.
        let _ = stream.write_all(text.as_bytes());
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let read = tokio::task::spawn_blocking(move || stream.read(&mut [0; 8])).await.unwrap();
        assert!(matches!(read, Ok(0) | Err(_)), "{text:?}: {read:?}");
        assert_eq!(served.metrics.unreadable.get(), index as u64 + 1, "{text:?}");
    }
}
