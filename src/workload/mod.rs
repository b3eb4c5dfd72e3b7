//! What a process works for: its service, its container and its user, from files alone. No daemon is asked.
//!
//! ```text
//! /proc/4711/cgroup ──cgroup──▶ Cgroup ──▶ Workload: unit, user unit, slice, container, pod, and who says so
//!                                             │
//!                     files of the engine ────┴──container_names──▶ the container's name, image and pod
//! /etc/passwd ──users──▶ the name of a uid
//! ```
//! systemd and the container engines name the cgroups that they make by rules of their own, so a path tells the unit and
//! the container. But not everything in a path is a fact of the host: below its own manager, a user may name a cgroup as
//! he likes, `sshd.service` for example, and so may a container and a service with Delegate=yes. So a path is read from
//! left to right, the outermost container is the container, and [`ClaimedBy`] says who could have chosen the names.
//!
//! Where to read on: this file reads one path. `unit` has systemd's names, [`container`] those of the engines.

pub mod cgroup;
pub mod container;
pub mod container_names;
pub mod names;
mod unit;
pub mod users;

use std::borrow::Cow;
use std::fmt;

use container::Container;
use container_names::ContainerName;

/// What the cgroup of a process tells about the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload<'a> {
    /// The unit of the system's service manager, such as `nginx.service`, `session-3.scope` or `user@1000.service`.
    /// Escapes such as `\x2d` are part of a name (systemd.unit(5)).
    pub unit: Option<&'a str>,
    /// The unit of the manager that runs as [`unit`](Self::unit), normally a user's own.
    pub user_unit: Option<&'a str>,
    /// The innermost slice of the system's manager; `-.slice` is the root (systemd.slice(5)).
    pub slice: &'a str,
    /// The user in whose slice or below whose manager the process runs. Its effective user may be another one: a
    /// setuid program stays in the cgroup of the user who started it.
    pub user: Option<u32>,
    /// The outermost container.
    pub container: Option<Container<'a>>,
    /// The uid of the Kubernetes pod. For a static pod, 32 digits that the API server does not know: a hash of its
    /// configuration.
    pub pod_uid: Option<Cow<'a, str>>,
    /// Who could have chosen the deepest of these names.
    pub claimed_by: ClaimedBy<'a>,
    /// Whether the beginning of the path is missing, since bwmon runs in a cgroup namespace and the process outside of
    /// it (cgroup_namespaces(7)). Then all of this, `claimed_by` too, is only likely.
    pub outside_namespace: bool,
}

/// Who could have chosen the names in the path of a cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ClaimedBy<'a> {
    /// The host's root, or a program to which it gave the whole hierarchy, such as a container engine.
    Root,
    /// This user: the path goes on below the user's own service manager.
    User(u32),
    /// The capsule of this name (systemd 256): the path goes on below its service manager.
    Capsule(&'a str),
    /// This unit: it made cgroups of its own.
    Unit(&'a str),
}

impl fmt::Display for ClaimedBy<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => f.write_str("root"),
            Self::User(uid) => write!(f, "uid:{uid}"),
            Self::Capsule(name) => write!(f, "capsule:{name}"),
            Self::Unit(name) => write!(f, "unit:{name}"),
        }
    }
}

impl<'a> Workload<'a> {
    /// Reads the path of a cgroup from the root of its hierarchy, as /proc/PID/cgroup has it. It may hold any bytes.
    pub fn of_path(path: &'a [u8]) -> Self {
        // The kernel's mark of a cgroup that was removed (kernel/cgroup/cgroup.c, proc_cgroup_show). A directory may
        // also be named so, but no unit and no container has a blank.
        let path = path.strip_suffix(b" (deleted)").unwrap_or(path);
        let names = || path.split(|&byte| byte == b'/').filter(|name| !name.is_empty());
        let components: Vec<&[u8]> = names().filter(|name| *name != b"..").collect();

        let slices: Vec<&str> = components.iter().map_while(|name| unit::slice(name)).collect();
        let (above, below) = components.split_at(slices.len());
        let unit = below.first().and_then(|name| unit::unit(name));
        let below = below.get(1..).unwrap_or_default();

        let manager = unit.and_then(unit::manager);
        let has_units = manager.is_some() || unit.is_some_and(|unit| unit::session(unit).is_some());
        let below_slices = &below[below.iter().take_while(|name| unit::slice(name).is_some()).count()..];
        let user_unit = below_slices.first().and_then(|name| unit::unit(name)).filter(|_| has_units);

        let found = container::find(&components);
        let claimed_by = match (unit, manager) {
            (Some(_), Some(manager)) if !below.is_empty() => manager,
            (Some(unit), None) if found.depth > above.len() + 1 || user_unit.is_some() => ClaimedBy::Unit(unit),
            _ => ClaimedBy::Root,
        };
        let user = match manager {
            Some(ClaimedBy::User(uid)) => Some(uid),
            _ => unit::user_of_slices(&slices),
        };
        Self {
            unit,
            user_unit,
            slice: slices.last().copied().unwrap_or("-.slice"),
            user,
            container: found.container,
            pod_uid: found.pod_uid,
            claimed_by,
            outside_namespace: names().any(|name| name == b".."),
        }
    }

    /// The id of the login session, from `session-ID.scope`.
    pub fn session(&self) -> Option<&'a str> {
        self.unit.and_then(unit::session)
    }

    /// The name by which to group and to select: `nginx.service`, and `user@1000.service/pipewire.service` for a unit
    /// of a user, which so cannot pass for one of the system. No name of a unit has a slash.
    pub fn unit_label(&self) -> Option<Cow<'a, str>> {
        match (self.unit?, self.user_unit) {
            (unit, None) => Some(Cow::Borrowed(unit)),
            (unit, Some(user_unit)) => Some(Cow::Owned(format!("{unit}/{user_unit}"))),
        }
    }

    /// The name by which to group and to select containers: the one that was [looked up](container_names), or else that
    /// of the path, `lxc/web` or `docker/0bfaa29e...`. If it is not the word of root, it begins with whose word it is:
    /// `uid:1000/web`.
    pub fn container_label(&self, looked_up: Option<&ContainerName>) -> Option<Vec<u8>> {
        let container = self.container.as_ref()?;
        let label = looked_up.map_or_else(|| container.label(), |name| name.label().into_bytes());
        Some(match self.claimed_by {
            ClaimedBy::Root => label,
            claimed_by => [format!("{claimed_by}/").into_bytes(), label].concat(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_of_a_user_cannot_pass_for_one_of_root() {
        let label = |path: &'static [u8], name: Option<&ContainerName>| Workload::of_path(path).container_label(name);
        let users = b"/user.slice/user-7.slice/user@7.service/lxc.payload.web";
        assert_eq!(label(b"/lxc.payload.web", None).unwrap(), b"lxc/web");
        assert_eq!(label(users, None).unwrap(), b"uid:7/lxc/web");
        assert_eq!(label(b"/system.slice/a.service/lxc.payload.web", None).unwrap(), b"unit:a.service/lxc/web");
        let name = ContainerName { name: Some("web".to_owned()), pod: None };
        assert_eq!(label(b"/lxc.payload.web", Some(&name)).unwrap(), b"web");
        assert_eq!(label(users, Some(&name)).unwrap(), b"uid:7/web");
        assert_eq!(label(b"/system.slice/a.service", Some(&name)), None);
    }

    #[test]
    fn a_unit_of_a_user_cannot_pass_for_one_of_the_system() {
        let label = |path: &'static [u8]| Workload::of_path(path).unit_label();
        assert_eq!(label(b"/system.slice/sshd.service").as_deref(), Some("sshd.service"));
        let users = b"/user.slice/user-7.slice/user@7.service/sshd.service";
        assert_eq!(label(users).as_deref(), Some("user@7.service/sshd.service"));
        assert_eq!(label(b"/docker"), None);
    }

    #[test]
    fn a_session_has_an_id() {
        let session = |path: &'static [u8]| Workload::of_path(path).session();
        assert_eq!(session(b"/user.slice/user-1000.slice/session-c1.scope/x"), Some("c1"));
        assert_eq!(session(b"/session-.scope"), None);
        assert_eq!(session(b"/system.slice/session-3.service"), None);
    }

    /// Vectors of systemd's own test (src/test/test-cgroup-util.c) for units of users.
    #[test]
    fn a_session_may_have_units_as_systemd_reads_them() {
        let user_unit = |path: &'static [u8]| Workload::of_path(path).user_unit;
        assert_eq!(user_unit(b"/session-2.scope/waldo.slice/foobar@pie.service/pa/po"), Some("foobar@pie.service"));
        assert_eq!(user_unit(b"/session-3.scope/_cpu.service"), Some("cpu.service"));
        assert_eq!(user_unit(b"/user.slice/user-1000.slice/session-2.scope/waldo/uuuux"), None);
        assert_eq!(user_unit(b"/user.slice/user-1000.slice/user@.service/server.service"), None);
        assert_eq!(
            user_unit(b"/foo.slice//foo-bar.slice/user@1000.service/piep.slice//foo.service"),
            Some("foo.service")
        );
        let claimed = Workload::of_path(b"/session-2.scope/foobar.service").claimed_by;
        assert_eq!(claimed, ClaimedBy::Unit("session-2.scope"));
    }

    #[test]
    fn only_what_is_below_a_manager_is_the_word_of_its_user() {
        let claimed = |path: &'static [u8]| Workload::of_path(path).claimed_by;
        assert_eq!(claimed(b"/user.slice/user-7.slice/user@7.service"), ClaimedBy::Root);
        assert_eq!(claimed(b"/user.slice/user-7.slice/user@7.service/x"), ClaimedBy::User(7));
        // No number that systemd would write, so no user.
        assert_eq!(claimed(b"/user.slice/user@07.service/a.service"), ClaimedBy::Root);
        assert_eq!(claimed(b"/user.slice/user@4294967296.service/a.service"), ClaimedBy::Root);
    }

    /// An engine lets its users choose the names of their containers.
    #[test]
    fn a_container_of_lxc_cannot_pass_for_a_unit_or_a_slice() {
        let workload = Workload::of_path(b"/lxc.payload.a.slice/sshd.service");
        assert_eq!((workload.unit, workload.slice), (None, "-.slice"));
        assert_eq!(*workload.container.unwrap().id, *b"a.slice");
        let workload = Workload::of_path(b"/lxc.payload.sshd.service");
        assert_eq!((workload.unit, workload.container.unwrap().id), (None, Cow::Borrowed(&b"sshd.service"[..])));
    }

    #[test]
    fn a_path_without_its_beginning_is_marked() {
        assert!(Workload::of_path(b"/../../system.slice/a.service").outside_namespace);
        assert!(!Workload::of_path(b"/system.slice/a..service").outside_namespace);
    }
}
