//! Bytes by unit, container, user and program: processes in cgroups as systemd and Docker make them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::unistd::{Gid, Uid, User, setresgid, setresuid};
use serde_json::Value;
use tempfile::TempDir;

use crate::common::program::{DEADLINE, Running};
use crate::common::user::NOBODY;
use crate::support::cgroups::Cgroups;
use crate::support::harness::{Lack, Outcome, needs_time_wait};
use crate::support::machine::number;
use crate::support::monitor::{Figures, RUNMONITOR};
use crate::support::netns::{Namespace, address, host_and_remote};
use crate::support::role::{as_role, start_role, tag, told};
use crate::support::truth::Truth;

/// A user without a name, whatever the host.
const NAMELESS: u32 = 1_234_567;
/// Processes of each client that make one connection and end.
const SHORT: usize = 10;

/// Plays the roles of this module, and says whether `role` is one.
pub fn play(role: &[&str]) -> bool {
    let ["within", cgroup, user, name, ref rest @ ..] = *role else { return false };
    // What a service manager does before it starts a program.
    fs::write(Path::new(cgroup).join("cgroup.procs"), "0").unwrap();
    let (uid, gid): (u32, u32) = (user.parse().unwrap(), user.parse().unwrap());
    setresgid(Gid::from_raw(gid), Gid::from_raw(gid), Gid::from_raw(gid)).unwrap();
    setresuid(Uid::from_raw(uid), Uid::from_raw(uid), Uid::from_raw(uid)).unwrap();
    let error = as_role(Command::new("/proc/self/exe"), name, &rest.join(" ")).stdin(Stdio::inherit()).exec();
    panic!("{error}");
}

/// Processes of one name, user and cgroup.
struct Client {
    key: &'static str,
    /// The name that its processes have.
    name: &'static str,
    uid: u32,
    cgroup: String,
    unit: String,
    container: String,
}

/// Two hosts, and the clients on one of them.
struct Scene<'a> {
    host: &'a Namespace,
    remote: &'a Namespace,
    truth: Truth<'a>,
    clients: Vec<Client>,
    _cgroups: Cgroups,
}

impl<'a> Scene<'a> {
    fn new(host: &'a Namespace, remote: &'a Namespace) -> Result<Self, Lack> {
        let mut cgroups = Cgroups::new()?;
        let [one, other] = [0, 1].map(|n| format!("{:064x}", number() * 2 + n));
        let service = format!("bwmon-{}.service", number());
        let manager = format!("user@{NOBODY}.service");
        let of_user = format!("user.slice/user-{NOBODY}.slice/{manager}");
        let none = || "(no unit)".to_owned();
        let no_container = || "(no container)".to_owned();
        let mut client = |key, name, uid, path: &str, unit: String, container: String| {
            Ok(Client { key, name, uid, cgroup: cgroups.make(path)?, unit, container })
        };
        let scope = |id: &str| format!("docker-{id}.scope");
        let clients = vec![
            client("service", "daemon", 0, &format!("system.slice/{service}"), service.clone(), no_container())?,
            // A user's unit with the name of one of the system.
            client(
                "fake_service",
                "daemon",
                NOBODY,
                &format!("{of_user}/app.slice/{service}"),
                format!("{manager}/{service}"),
                no_container(),
            )?,
            // Two containers with one command line, and a user's with the name of one of them.
            client("one", "twin", 0, &format!("system.slice/{}", scope(&one)), scope(&one), format!("docker/{one}"))?,
            client(
                "other",
                "twin",
                0,
                &format!("system.slice/{}", scope(&other)),
                scope(&other),
                format!("docker/{other}"),
            )?,
            client(
                "fake_one",
                "twin",
                NOBODY,
                &format!("{of_user}/{}", scope(&one)),
                format!("{manager}/{}", scope(&one)),
                format!("uid:{NOBODY}/docker/{one}"),
            )?,
            client("plain", "plain", NAMELESS, "", none(), no_container())?,
        ];
        Ok(Self { host, remote, truth: Truth::new(host), clients, _cgroups: cgroups })
    }

    /// Makes the traffic of all clients, whose processes then have ended, while the servers still run. `round` tells one call from
    /// another. Returns the servers, with their ports.
    fn play(&self, round: &str) -> Vec<(Running, u16)> {
        let [remote_v4, _] = address(2);
        let mut servers = Vec::new();
        for client in &self.clients {
            let server = start_role(self.remote, "server", "join 0");
            let port = told(&server);
            self.truth.count(&format!("{round}_{}", client.key), "tcp", port);
            let start = |act: &str| {
                let Client { cgroup, uid, name, .. } = client;
                start_role(self.host, "manager", &format!("within {cgroup} {uid} {name} ask {remote_v4}:{port}{act}"))
            };
            let long = start(" and stay");
            told(&long);
            for _ in 0..SHORT {
                let (status, ..) = start("").end();
                assert!(status.success());
            }
            servers.push((server, port));
        }
        servers
    }

    /// The bytes in and out of each group in a round; of the servers, as of a process that has neither unit nor container.
    fn expected(&self, round: &str, group: impl Fn(&Client) -> String) -> Figures {
        let server = Client {
            key: "server",
            name: "server",
            uid: 0,
            cgroup: String::new(),
            unit: "(no unit)".to_owned(),
            container: "(no container)".to_owned(),
        };
        let bytes = self.truth.bytes();
        let mut expected = Figures::new();
        for client in &self.clients {
            let (sent, received) = bytes[&format!("{round}_{}", client.key)];
            for (client, (bytes_in, bytes_out)) in [(client, (received, sent)), (&server, (sent, received))] {
                let sum = expected.entry(group(client)).or_default();
                *sum = (sum.0 + bytes_in, sum.1 + bytes_out);
            }
        }
        expected
    }
}

/// A program that has shown its first frame of records.
fn start(program: &mut Command, arguments: &[&str]) -> Running {
    let common = ["--json", "--source=packets", "--keep", "--remotes=100", "--interval=0.5"];
    let program = Running::start(program.args(common).args(arguments).stdin(Stdio::null()));
    while record(&program)["kind"] != "tick" {}
    program
}

fn record(program: &Running) -> Value {
    serde_json::from_str(&program.line()).unwrap()
}

fn user_name(uid: u32) -> String {
    User::from_uid(Uid::from_raw(uid)).unwrap().map_or(uid.to_string(), |user| user.name)
}

/// Waits until the groups of a frame have the expected bytes, to a thousandth. Returns their records.
fn wait_for(program: &Running, field: &str, expected: impl Fn() -> Figures) -> BTreeMap<String, Value> {
    let give_up = Instant::now() + DEADLINE;
    loop {
        let frame: Vec<Value> =
            std::iter::repeat_with(|| record(program)).take_while(|record| record["kind"] != "tick").collect();
        let groups = frame.into_iter().filter_map(|record| Some((record[field].as_str()?.to_owned(), record)));
        let groups: BTreeMap<String, Value> = groups.collect();
        let expected = expected();
        let near = |shown: &Value, expected: u64| shown.as_u64().unwrap().abs_diff(expected) * 1000 <= expected;
        let is_fine = groups.len() == expected.len()
            && expected.iter().all(|(name, &(bytes_in, bytes_out))| {
                groups.get(name).is_some_and(|record| {
                    near(&record["in_bytes_total"], bytes_in) && near(&record["out_bytes_total"], bytes_out)
                })
            });
        if is_fine {
            return groups;
        }
        assert!(Instant::now() < give_up, "{groups:#?}, not {expected:#?}");
    }
}

pub fn each_unit_container_user_and_program_has_its_bytes() -> Outcome {
    needs_time_wait()?;
    let (host, remote) = &host_and_remote();
    let scene = Scene::new(host, remote)?;
    let [[host_v4, _], [remote_v4, _]] = [1, 2].map(address);
    let include = format!("--include={}\\b", tag());
    for by in ["unit", "container", "user", "program"] {
        let program = start(&mut Command::new(RUNMONITOR), &[&include, &format!("--group-by={by}")]);
        let servers = scene.play(by);
        let group = |client: &Client| match by {
            "unit" => client.unit.clone(),
            "container" => client.container.clone(),
            "user" => user_name(client.uid),
            _ => format!("{}{}", client.name, tag()),
        };
        let shown = wait_for(&program, "group", || scene.expected(by, group));
        for (client, (_, port)) in scene.clients.iter().zip(&servers) {
            // Which server a client has asked, and who has asked the servers.
            let ends = |record: &Value| record["remotes"].as_array().unwrap().clone();
            let end = ends(&shown[&group(client)]);
            let end = end.iter().find(|end| end["address"] == *remote_v4 && end["port"] == *port);
            let end =
                end.unwrap_or_else(|| panic!("{} has not asked port {port}: {:#}", client.key, shown[&group(client)]));
            let (sent, received) = scene.truth.bytes()[&format!("{by}_{}", client.key)];
            assert_eq!((&end["in_bytes_total"], &end["out_bytes_total"]), (&received.into(), &sent.into()));
        }
        for record in shown.values() {
            let ends = record["remotes"].as_array().unwrap().iter().chain([&record["other_remotes"]]);
            let sum: u64 = ends.map(|end| end["in_bytes_total"].as_u64().unwrap()).sum();
            assert_eq!(record["in_bytes_total"], sum, "{record:#}");
            let addresses = record["remotes"].as_array().unwrap().iter().map(|end| end["address"].as_str().unwrap());
            assert!(addresses.into_iter().all(|address| [&host_v4, &remote_v4].contains(&&address.to_owned())));
        }
    }
    Ok(())
}

pub fn an_application_is_what_its_units_containers_users_and_programs_use() -> Outcome {
    needs_time_wait()?;
    let (host, remote) = &host_and_remote();
    let scene = Scene::new(host, remote)?;
    let directory = TempDir::new().unwrap();
    let (service, one) = (&scene.clients[0].unit, &scene.clients[2].container);
    let nobody = user_name(NOBODY);
    let plain = format!("plain{}", tag());
    let applications = format!(
        "[Service]\nunit.a=^{service}$\n[Container]\ncontainer.a=^{one}$\n[Of nobody]\nuser.a=^{nobody}$\n[Plain]\nprogram.a=^{plain}$\n"
    );
    fs::write(directory.path().join("a.cfg"), applications).unwrap();
    let monitor = format!("[Ours]\ntype=monitor\ninclude={}\\b\n", tag());
    fs::write(directory.path().join("m.cfg"), monitor).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_runaggregator"));
    let files = ["--app-config=a.cfg", "--monitor-config=m.cfg", "--auto-group=unit", "--totals"];
    let program = start(command.current_dir(directory.path()), &files);
    let _servers = scene.play("all");
    wait_for(&program, "application", || {
        scene.expected("all", |client| match client.key {
            "service" => "Service".to_owned(),
            "one" => "Container".to_owned(),
            "fake_service" | "fake_one" => "Of nobody".to_owned(),
            "plain" => "Plain".to_owned(),
            _ => client.unit.clone(),
        })
    });
    Ok(())
}
