//! What the cgroup of a process tells of its workload: the cases of tests/fixtures/cgroups.jsonl, and generated paths.

use std::borrow::Cow;

use bwmon::workload::cgroup::{Cgroup, host_root};
use bwmon::workload::{ClaimedBy, Workload};
use proptest::prelude::*;
use serde_json::{Value, json};

const ID: &str = "0bfaa29e7c3ba52f6c3694393dea4416b0e6047153b47be508893e2d03cf8d5a";
const OTHER_ID: &str = "a0da685324580cb8d670967c13467442e192c2fda9919d37c3b75e1582c4946c";

/// The answer in the form of the cases.
fn answer(cgroup: Option<&Cgroup>) -> Value {
    let workload = cgroup.map(Cgroup::workload);
    let text = |bytes: &Cow<'_, [u8]>| String::from_utf8_lossy(bytes).into_owned();
    let container = workload.as_ref().and_then(|workload| workload.container.as_ref());
    json!({
        "unit": workload.as_ref().and_then(|workload| workload.unit),
        "user_unit": workload.as_ref().and_then(|workload| workload.user_unit),
        "slice": workload.as_ref().map(|workload| workload.slice),
        "container_runtime": container.map(|container| container.runtime.name()),
        "container_id": container.map(|container| text(&container.id)),
        "pod_uid": workload.as_ref().and_then(|workload| workload.pod_uid.as_deref()),
        "user_id": workload.as_ref().and_then(|workload| workload.user),
        "claimed_by": workload.as_ref().map(|workload| workload.claimed_by.to_string()),
    })
}

fn cases() -> Vec<Value> {
    let lines = include_str!("../fixtures/cgroups.jsonl").lines();
    lines.map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn every_case_has_its_answer() {
    let cases = cases();
    assert_eq!(cases.len(), 125);
    let mut wrong = Vec::new();
    for case in cases {
        let root = case["host_root"].as_str().unwrap_or_default();
        let cgroup = Cgroup::parse(case["cgroup"].as_str().unwrap().as_bytes(), root.as_bytes());
        let answer = answer(cgroup.as_ref());
        for (key, value) in answer.as_object().unwrap() {
            if case[key] != *value {
                wrong.push(format!("{}: {key} is {value}, not {}", case["case"], case[key]));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A file of /proc may be cut anywhere, and a name be changed in any byte.
#[test]
fn a_case_that_is_cut_or_damaged_still_has_an_answer() {
    for case in cases() {
        let text = case["cgroup"].as_str().unwrap().as_bytes();
        for at in 0..text.len() {
            answer(Cgroup::parse(&text[..at], b"").as_ref());
            let mut damaged = text.to_vec();
            damaged[at] ^= 0x81;
            answer(Cgroup::parse(&damaged, b"/wsl").as_ref());
        }
    }
}

#[test]
fn a_container_has_the_name_that_its_path_has() {
    let label = |path: &str| {
        let label = Workload::of_path(path.as_bytes()).container.map(|container| container.label());
        String::from_utf8(label.unwrap()).unwrap()
    };
    assert_eq!(label(r"/machine.slice/machine-qemu\x2d3\x2ddb\x2d1.scope/libvirt/emulator"), "libvirt-qemu/db-1");
    assert_eq!(label(r"/machine.slice/machine-qemu\x2ddb.scope"), "machine/qemu-db");
    assert_eq!(label("/app.slice/app-flatpak-org.mozilla.firefox-29716.scope"), "flatpak/org.mozilla.firefox");
    assert_eq!(label("/nomad.slice/share.slice/7c9e6679-7425-40de-944b-e07fc1f90ae7.web.scope"), "nomad/web");
    assert_eq!(label("/system.slice/snap.cups_second.cupsd.service"), "snap/cups");
    assert_eq!(label("/lxc.payload.web"), "lxc/web");
    assert_eq!(
        label("/docker/0bfaa29e7c3ba52f6c3694393dea4416b0e6047153b47be508893e2d03cf8d5a"),
        format!("docker/{ID}")
    );
}

#[test]
fn what_only_resembles_a_container_is_none() {
    let id = ID;
    for path in [
        format!("/system.slice/libpod-conmon-{id}.scope"),
        format!("/kubepods/burstable/pod0f3c1a2b-4d5e-4f60-8a7b-9c0d1e2f3a4b/crio-conmon-{id}"),
        format!("/lxc.monitor/{id}"),
        "/lxc.monitor.web/lxc.payload.web".to_owned(),
        format!("/a/b/{id}"),
        format!("/system.slice/other-{id}.scope"),
        format!("/system.slice/x.slice:docker:{id}:y"),
        format!("/system.slice/docker-{id}.service"),
        "/machine.slice/machine-.scope".to_owned(),
        "/machine.slice/machine-web.scope/supervisor".to_owned(),
        "/machine.slice/systemd-nspawn@web.service".to_owned(),
        "/system.slice/snap.lxd.service".to_owned(),
        "/system.slice/snap.lxd.daemon.socket".to_owned(),
        "/app.slice/app-flatpak-org.x.Y.scope".to_owned(),
        "/garden/6f265890-5165-7fab-6b52-18d12".to_owned(),
        format!("/ecs/{}/{}-", &id[..32], &id[..32]),
        "/lxc".to_owned(),
        "/lxc.payload.".to_owned(),
        "/firecracker".to_owned(),
    ] {
        assert_eq!(Workload::of_path(path.as_bytes()).container, None, "{path}");
    }
}

/// The kernel gives at most 4095 bytes, but nothing here relies on it.
#[test]
fn a_path_of_any_length_is_read() {
    let deep = b"/a.slice".repeat(200_000);
    assert_eq!(Workload::of_path(&deep).slice, "a.slice");
    let long = [b"/lxc.payload.".as_slice(), &b"x".repeat(2_000_000)].concat();
    assert_eq!(Workload::of_path(&long).container.unwrap().id.len(), 2_000_000);
    let escaped = [b"/machine-".as_slice(), &br"\x2d".repeat(50), b".scope"].concat();
    assert_eq!(Workload::of_path(&escaped).container.unwrap().id, b"-".repeat(50));
}

/// The name of a directory: one that means something somewhere, or any.
fn component() -> impl Strategy<Value = Vec<u8>> {
    let known = [
        "system.slice",
        "sshd.service",
        "user.slice",
        "user-0.slice",
        "user@0.service",
        "session-3.scope",
        "init.scope",
        "capsule@x.service",
        "docker",
        "kubepods",
        "burstable",
        "pod0f3c1a2b-4d5e-4f60-8a7b-9c0d1e2f3a4b",
        "kubepods-pod0f3c1a2b_4d5e_4f60_8a7b_9c0d1e2f3a4b.slice",
        "lxc.payload.other",
        "lxc.payload",
        "lxc",
        "lxc.monitor",
        r"machine-other\x2d1.scope",
        "systemd-nspawn@other.service",
        "payload",
        "supervisor",
        "snap.a.b.service",
        "app-flatpak-org.x.Y-1.scope",
        "ecs",
        "garden",
        "firecracker",
        "kata_overhead",
        "nomad.slice",
        "share.slice",
    ];
    let with_id = ["", "docker-", "libpod-", "libpod-payload-", "crio-", "kata_", "x.slice:docker:"];
    prop_oneof![
        prop::sample::select(known.to_vec()).prop_map(|name| name.as_bytes().to_vec()),
        prop::sample::select(with_id.to_vec()).prop_map(|prefix| format!("{prefix}{OTHER_ID}").into_bytes()),
        prop::sample::select(with_id.to_vec()).prop_map(|prefix| format!("{prefix}{OTHER_ID}.scope").into_bytes()),
        prop::collection::vec(any::<u8>().prop_filter("no separator", |byte| !b"/\n\0".contains(byte)), 1..12)
            .prop_filter("no directory can have this name", |name| name != b"." && name != b".."),
    ]
}

/// A path below another one.
fn below() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(component(), 1..6).prop_map(|components| components.join(&b'/'))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_bytes_make_it_panic(text in prop::collection::vec(any::<u8>(), 0..300), path in below(), root in below()) {
        answer(Cgroup::parse(&text, &root).as_ref());
        answer(Cgroup::parse(&[b"0::/", path.as_slice()].concat(), host_root(&text)).as_ref());
    }

    #[test]
    fn the_path_keeps_every_byte(path in below()) {
        let text = [b"0::/", path.as_slice(), b"\n"].concat();
        let cgroup = Cgroup::parse(&text, b"").unwrap();
        prop_assert_eq!(cgroup.path(), &text[3..text.len() - 1]);
    }

    #[test]
    fn whatever_a_user_makes_stays_his_word(path in below()) {
        let path = [b"/user.slice/user-7.slice/user@7.service/", path.as_slice()].concat();
        let workload = Workload::of_path(&path);
        prop_assert_eq!(workload.claimed_by, ClaimedBy::User(7));
        prop_assert_eq!((workload.unit, workload.user), (Some("user@7.service"), Some(7)));
        prop_assert_eq!(workload.slice, "user-7.slice");
        prop_assert!(workload.unit_label().unwrap().starts_with("user@7.service"));
    }

    #[test]
    fn whatever_a_container_makes_changes_nothing(
        container in prop::sample::select([
            format!("/system.slice/docker-{ID}.scope"),
            format!("/docker/{ID}"),
            format!("/kubepods/besteffort/pod11111111-4d5e-4f60-8a7b-9c0d1e2f3a4b/{ID}"),
            "/lxc.payload.web".to_owned(),
            "/machine.slice/systemd-nspawn@web.service/payload".to_owned(),
        ].to_vec()),
        path in below(),
    ) {
        let path = [container.as_bytes(), b"/", path.as_slice()].concat();
        prop_assert_eq!(Workload::of_path(&path), Workload::of_path(container.as_bytes()));
    }

    #[test]
    fn whatever_a_service_makes_is_its_own_claim(path in below()) {
        let path = [b"/system.slice/worker.service/", path.as_slice()].concat();
        let workload = Workload::of_path(&path);
        prop_assert_eq!((workload.unit, workload.user_unit), (Some("worker.service"), None));
        prop_assert_eq!((workload.slice, workload.user), ("system.slice", None));
        let claims = workload.container.is_some() || workload.pod_uid.is_some();
        prop_assert_eq!(workload.claimed_by == ClaimedBy::Unit("worker.service"), claims);
    }
}
