//! The kernel refuses to make links for sandboxes, for real: their names are taken by a device that can't be deleted.

use super::{answers, cold, reason};
use crate::crash::assert_no_leak;
use crate::hearthd::{Hearth, eventually};
use crate::network::{census, mode, node, reaches, with_policy};
use crate::outside::{self, Outside};
use hearth::api::NetworkMode;
use std::path::PathBuf;
use std::process::Command;

/// More than are tried while the names are taken.
const NAMES: usize = 192;
/// What fits into one request of ip.
const AT_ONCE: usize = 32;

/// Names of links to come, as other names of the router's loopback.
struct Taken {
    router: PathBuf,
    names: Vec<String>,
}

impl Taken {
    fn ip(&self, words: &[&str]) -> String {
        let net = format!("--net={}", self.router.display());
        let mut command = Command::new("nsenter");
        let output = command.arg(net).arg("ip").args(words).output().unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn names(&self, verb: &str, names: &[String]) {
        for some in names.chunks(AT_ONCE) {
            let mut words = vec!["link", "property", verb, "dev", "lo"];
            words.extend(some.iter().flat_map(|name| ["altname", name]));
            self.ip(&words);
        }
    }

    fn new(hearth: &Hearth) -> Self {
        let mut taken = Self {
            router: hearth.path("run/netns/router"),
            names: Vec::new(),
        };
        let there = taken.ip(&["-o", "link"]);
        let names = (0..).map(|slot| format!("sb{slot}"));
        let free = names.filter(|name| !there.contains(&format!(" {name}@")));
        taken.names = free.take(NAMES).collect();
        taken.names("add", &taken.names);
        taken
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.names("del", &self.names);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_kernel_makes_no_links_what_is_there_goes_on_and_others_are_served() {
    let outside = Outside::new();
    let hearth = node(&outside).await;
    let pools = vec![
        with_policy("open", 1, mode(NetworkMode::Internet)),
        with_policy("closed", 1, mode(NetworkMode::None)),
    ];
    hearth.set_pools(pools).await;
    hearth.warm("open", 1).await;
    hearth.warm("closed", 1).await;
    let (kept, _) = hearth.claim("open").await;
    hearth.warm("open", 1).await;
    assert!(reaches(&hearth, &kept, outside::PUBLIC, 80).await);
    let mut before = census(&hearth);
    eventually("spares are there", || {
        let same = std::mem::replace(&mut before, census(&hearth)) == before;
        async move {
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            same
        }
    })
    .await;

    let taken = Taken::new(&hearth);
    let mut more = Vec::new();
    let refused = loop {
        // What is warm and what is spare first.
        assert!(more.len() < 12, "links are made all the same");
        match cold(&hearth, "open").await {
            Ok(claim) => more.push(claim),
            Err(refused) => break refused,
        }
    };
    let why = reason(&refused);
    assert!(
        ["CREATE_FAILED", "POOL_FAILING"].contains(&why.as_str()),
        "{refused:?}"
    );
    assert!(
        refused.message().contains("link: EOPNOTSUPP"),
        "{refused:?}"
    );
    // Nobody else minds.
    assert!(reaches(&hearth, &kept, outside::PUBLIC, 80).await);
    for claim in &more {
        assert!(reaches(&hearth, claim, outside::PUBLIC, 80).await);
    }
    let unwired = cold(&hearth, "closed").await.unwrap();
    answers(&hearth, &unwired).await;
    hearth.serve_one("closed").await;
    let spent = more.pop().unwrap();
    let sandbox = hearth.get(&spent).await.sandbox_id;
    hearth.release(&spent).await;
    super::is_gone(&hearth, &sandbox).await;

    drop(taken);
    hearth.warm("open", 1).await;
    let late = cold(&hearth, "open").await.unwrap();
    assert!(reaches(&hearth, &late, outside::PUBLIC, 80).await);
    for claim in more.iter().chain([&unwired, &late]) {
        hearth.release(claim).await;
    }
    // Also what was half made meanwhile.
    let mut after = before.clone();
    eventually("everything is as before", || {
        after = census(&hearth);
        let same = after == before;
        async move {
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            same
        }
    })
    .await;
    hearth.release(&kept).await;
    assert_no_leak(&hearth).await;
    hearth.finish().await;
}
