//! The sample files group real processes as their comments say.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, User, setresgid, setresuid};
use serde_json::Value;

use crate::common::documents::root;
use crate::common::program::{DEADLINE, Running};
use crate::support::cgroups::Cgroups;
use crate::support::harness::{Lack, Outcome, needs_packets};
use crate::support::machine::number;
use crate::support::role::{as_role, role_command, told};

/// The port of the server, in a namespace of the test.
const PORT: u16 = 443;

/// Plays the roles of this module, and says whether `role` is one.
pub fn play(role: &[&str]) -> bool {
    let ["as", user, cgroup] = *role else { return false };
    fs::write(Path::new(cgroup).join("cgroup.procs"), "0").unwrap();
    let id: u32 = user.parse().unwrap();
    setresgid(Gid::from_raw(id), Gid::from_raw(id), Gid::from_raw(id)).unwrap();
    setresuid(Uid::from_raw(id), Uid::from_raw(id), Uid::from_raw(id)).unwrap();
    let name = std::env::args().next().unwrap();
    let load = format!("load {PORT} 5000");
    let mut command = as_role(Command::new("/proc/self/exe"), "", &load);
    panic!("{}", command.arg0(name).stdin(Stdio::inherit()).exec());
}

/// What a comment promises: which process belongs to which application.
struct Promise {
    what: String,
    application: String,
}

/// The promises of a file of applications: comments with an arrow.
fn promises(text: &str) -> Vec<Promise> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("#   ")?.split_once(" -> "));
    lines.map(|(what, application)| Promise { what: what.to_owned(), application: application.to_owned() }).collect()
}

/// Starts the process of a promise. `n` tells containers apart.
fn start(what: &str, n: usize, cgroups: &mut Cgroups) -> Result<Running, Lack> {
    let (kind, rest) = what.split_once(' ').unwrap_or((what, ""));
    let (mut name, mut uid, mut cgroup) = ("daemon", 0, String::new());
    match kind {
        "unit" => cgroup = format!("system.slice/{rest}"),
        "container" => {
            let id = format!("{:064x}", number() as usize * 100 + n);
            let files = PathBuf::from(format!("/var/lib/docker/containers/{id}"));
            fs::create_dir_all(&files).unwrap();
            fs::write(files.join("config.v2.json"), format!("{{\"Name\":\"/{rest}\"}}")).unwrap();
            cgroup = format!("system.slice/docker-{id}.scope");
        }
        "user" => {
            let user = User::from_name(rest).unwrap().ok_or_else(|| Lack(format!("a user {rest}")))?;
            uid = user.uid.as_raw();
        }
        _ => name = what,
    }
    let cgroup = cgroups.make(&cgroup)?;
    let process = Running::start(role_command("", &format!("as {uid} {cgroup}")).arg0(name));
    told(&process);
    Ok(process)
}

/// The sample files of this name, one in each directory.
fn files(name: &str) -> Vec<PathBuf> {
    let directories = fs::read_dir(root().join("samples")).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        directories.map(|directory| directory.join(name)).filter(|file| file.exists()).collect();
    files.sort();
    files
}

pub fn each_sample_groups_processes_as_its_comments_say() -> Outcome {
    needs_packets()?;
    // The names of containers are files of the engine.
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    mount(Some("tmpfs"), "/var/lib", Some("tmpfs"), MsFlags::empty(), none).unwrap();
    let server = Running::start(role_command("", "serve_web").arg0("server"));
    told(&server);
    let mut cgroups = Cgroups::new()?;
    let files = files("applications.cfg");
    assert!(!files.is_empty());
    for file in files {
        let promises = promises(&fs::read_to_string(&file).unwrap());
        assert!(!promises.is_empty(), "{}", file.display());
        let mut processes = Vec::new();
        for (n, promise) in promises.iter().enumerate() {
            processes.push(start(&promise.what, n, &mut cgroups)?);
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_runaggregator"));
        command.args(["--json", "--source=packets", "--interval=0.5", "--app-config"]).arg(&file);
        let program = Running::start(command.stdin(Stdio::null()));
        wait_for_promises(&program, &promises, &processes);
    }
    Ok(())
}

/// Waits until each process is one of its application, in one frame.
fn wait_for_promises(program: &Running, promises: &[Promise], processes: &[Running]) {
    let give_up = Instant::now() + DEADLINE;
    loop {
        let records = std::iter::repeat_with(|| serde_json::from_str::<Value>(&program.line()).unwrap());
        let frame: Vec<Value> = records.take_while(|record| record["kind"] != "tick").collect();
        let application = |pid: u32| {
            let of_pid = |record: &&Value| record["pids"].as_array().is_some_and(|pids| pids.contains(&pid.into()));
            frame.iter().find(of_pid).map(|record| record["application"].clone())
        };
        let wrong = promises.iter().zip(processes).find_map(|(promise, process)| {
            let shown = application(process.child.id());
            (shown != Some(promise.application.as_str().into())).then_some((promise, shown))
        });
        let Some((promise, shown)) = wrong else { return };
        assert!(Instant::now() < give_up, "{}: {shown:?}, not {}", promise.what, promise.application);
    }
}
