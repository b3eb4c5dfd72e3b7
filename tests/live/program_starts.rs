//! What the kernel notes of programs as they start.

use std::io::Read;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use bwmon::kernel::bpf::program_starts::StartedProgram;
use bwmon::kernel::process::Processes;

use crate::common::user::NOBODY;
use crate::support::cgroups::Cgroups;
use crate::support::harness::{Outcome, needs_command, needs_program_starts};
use crate::support::role::as_role;

/// A process that has started its program, and ends with its standard input.
fn start(command: &mut Command) -> Child {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // `spawn` returns once the program has been started; this waits for one that starts another.
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
    child
}

/// A shell that says so when it runs.
const READY: &str = "echo ready; read line";

fn end(mut child: Child) {
    drop(child.stdin.take());
    child.wait().unwrap();
}

/// The latest of these programs that the process has started.
fn of(child: &Child, started: &[StartedProgram]) -> StartedProgram {
    started.iter().rfind(|program| program.process.pid == child.id()).cloned().expect("the program was not noted")
}

pub fn what_is_noted_of_a_program_is_what_proc_shows() -> Outcome {
    let mut starts = needs_program_starts()?;
    let proc = Processes::new("/proc");
    let shell = || {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", READY]);
        shell
    };
    let mut cases = vec![("a shell", shell())];
    let mut of_nobody = shell();
    of_nobody.uid(NOBODY).gid(NOBODY);
    cases.push(("another user", of_nobody));
    let mut long = shell();
    long.args(["", " b", &"x".repeat(1500)]);
    cases.push(("arguments", long));
    // The program is on a mount on a mount that only its own namespace has.
    let mounts = "mount -t tmpfs none /mnt && mkdir /mnt/a && mount -t tmpfs none /mnt/a && cp -L /bin/sh /mnt/a/its-shell && exec /mnt/a/its-shell -c";
    let mut mounted = Command::new("unshare");
    mounted.args(["--mount", "sh", "-c", &format!("{mounts} '{READY}'")]);
    cases.push(("mounts", mounted));
    let mut cgroups = Cgroups::new()?;
    let name = format!("/bwmon-test-{}/inner.slice", std::process::id());
    let cgroup = cgroups.make(&name)?;
    let mut in_cgroup = Command::new("sh");
    in_cgroup.args(["-c", &format!("echo $$ > {cgroup}/cgroup.procs && exec sh -c '{READY}'")]);
    cases.push(("a cgroup", in_cgroup));

    for (case, mut command) in cases {
        let child = start(&mut command);
        let shown = proc.read(child.id()).unwrap().unwrap();
        let noted = of(&child, &starts.take().unwrap());
        end(child);
        assert_eq!(noted.process, shown, "{case}");
        assert!(!noted.may_have_sockets, "{case}");
        match case {
            "mounts" => assert_eq!(shown.executable.unwrap(), b"/mnt/a/its-shell"),
            "a cgroup" => assert_eq!(shown.cgroup.unwrap().path(), name.as_bytes()),
            _ => {}
        }
    }
    Ok(())
}

pub fn in_a_time_namespace_the_start_times_are_those_of_its_proc() -> Outcome {
    needs_program_starts()?;
    let place = ["--time", "--boottime", "86400", "--fork"];
    needs_command("unshare", &[&place[..3], &["true"]].concat())?;
    let mut unshare = Command::new("unshare");
    unshare.args(place).arg(std::env::current_exe().unwrap());
    let status = as_role(unshare, "elsewhen", "compare-start-times").status().unwrap();
    assert!(status.success());
    Ok(())
}

/// Plays a role of these tests; false for those of others.
pub fn play(role: &[&str]) -> bool {
    if role != ["compare-start-times"] {
        return false;
    }
    let mut starts = needs_program_starts().ok().expect("what worked outside works here");
    let child = start(Command::new("/bin/sh").args(["-c", READY]));
    let shown = Processes::new("/proc").read(child.id()).unwrap().unwrap();
    let noted = of(&child, &starts.take().unwrap());
    end(child);
    assert_eq!(noted.process, shown);
    true
}

pub fn of_arguments_without_end_the_beginning_is_noted() -> Outcome {
    let mut starts = needs_program_starts()?;
    let mut command = Command::new("/bin/sh");
    command.args(["-c", READY, &"y".repeat(100_000)]);
    let child = start(&mut command);
    let shown = Processes::new("/proc").read(child.id()).unwrap().unwrap();
    let noted = of(&child, &starts.take().unwrap());
    end(child);
    assert!(noted.process.command_line.len() > 1000);
    assert!(shown.command_line.starts_with(&noted.process.command_line));
    Ok(())
}

pub fn programs_that_begin_with_a_socket_are_told_from_those_without() -> Outcome {
    let mut starts = needs_program_starts()?;
    let shell = |commands: &str| {
        let mut shell = Command::new("sh");
        shell.args(["-c", commands]);
        shell
    };
    let socket = || Stdio::from(OwnedFd::from(TcpListener::bind("127.0.0.1:0").unwrap()));
    let mut with_socket = shell(READY);
    with_socket.stderr(socket());
    let mut at_high_number = shell(&format!("exec 9>&2 2>/dev/null; exec sh -c '{READY}'"));
    at_high_number.stderr(socket());
    // dash knows no descriptors above 9.
    let mut far_away = Command::new("bash");
    far_away.args(["-c", &format!("exec 300>/dev/null 2>/dev/null; exec sh -c '{READY}'")]);
    let mut closed = shell(&format!("exec 2>/dev/null; exec sh -c '{READY}'"));
    closed.stderr(socket());
    for (case, command, expected) in [
        ("2", &mut with_socket, true),
        ("9", &mut at_high_number, true),
        ("closed", &mut closed, false),
        ("300", &mut far_away, true),
    ] {
        let child = start(command);
        assert_eq!(of(&child, &starts.take().unwrap()).may_have_sockets, expected, "{case}");
        end(child);
    }
    Ok(())
}

pub fn a_flood_of_programs_takes_no_room_from_those_of_others() -> Outcome {
    /// More than are noted.
    const FLOOD: usize = 10_000;
    let mut starts = needs_program_starts()?;
    let flood = format!("i=0; while [ $i -lt {FLOOD} ]; do i=$((i+1)); /bin/true; done");
    assert!(Command::new("sh").args(["-c", &flood]).uid(NOBODY).gid(NOBODY).status().unwrap().success());
    let child = start(Command::new("/bin/sh").args(["-c", READY]));
    let started = starts.take().unwrap();
    end(child);
    let of_flood = started.iter().filter(|program| program.process.uid == Some(NOBODY)).count();
    assert!((1..FLOOD).contains(&of_flood), "{of_flood}");
    assert!(started.iter().any(|program| program.process.command_line.starts_with(b"/bin/sh -c echo ready")));
    // What was read makes room.
    let next = start(Command::new("/bin/sh").args(["-c", READY]).uid(NOBODY).gid(NOBODY));
    of(&next, &starts.take().unwrap());
    end(next);
    Ok(())
}
