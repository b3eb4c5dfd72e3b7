//! The cgroups of a process in all hierarchies, from /proc/PID/cgroup (cgroups(7)).
//!
//! ```text
//! 5:memory:/docker/0bfaa29e...                  one line for each hierarchy of version 1, with its controllers
//! 1:name=systemd:/system.slice/docker.service   the one that systemd keeps for itself
//! 0::/system.slice/docker.service               cgroup2
//! ```
//! A host has only the last line, or the lines before, or both. Their order is not fixed. The file is written by
//! proc_cgroup_show in kernel/cgroup/cgroup.c. It cuts a path off after 4095 bytes; older kernels refuse to show any of
//! the lines then.

use super::{ClaimedBy, Workload};

/// The hierarchies in the order in which they are searched for a container: the first that has one is right. On a host
/// with both versions, an engine may use only the controllers, or only systemd's hierarchy.
const HIERARCHIES: [&[u8]; 10] =
    [b"name=systemd", b"", b"memory", b"pids", b"cpu", b"cpuacct", b"cpuset", b"devices", b"blkio", b"freezer"];

/// The cgroups of a process that tell its workload.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cgroup {
    /// The path in systemd's own hierarchy, or in cgroup2.
    path: Box<[u8]>,
    /// The path in the hierarchy that has the container, if `path` has none.
    container_path: Option<Box<[u8]>>,
}

impl Cgroup {
    /// Reads the text of /proc/PID/cgroup; `None` if it has no line of a hierarchy. All paths are taken from the
    /// [root of the host](host_root).
    pub fn parse(text: &[u8], host_root: &[u8]) -> Option<Self> {
        let paths = paths(text)?;
        let path = below(main_path(&paths), host_root);
        let tells = |path: &[u8]| {
            let workload = Workload::of_path(path);
            workload.container.is_some() || workload.pod_uid.is_some()
        };
        let mut others = paths.iter().flatten().map(|other| below(other, host_root)).filter(|other| *other != path);
        let container_path = if tells(path) { None } else { others.find(|other| tells(other)) };
        Some(Self { path: path.into(), container_path: container_path.map(Box::from) })
    }

    /// The path in systemd's own hierarchy, or in cgroup2: the one that tells the unit.
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    /// What the paths tell.
    pub fn workload(&self) -> Workload<'_> {
        let mut workload = Workload::of_path(&self.path);
        if let Some(path) = &self.container_path {
            let other = Workload::of_path(path);
            workload.container = other.container;
            workload.pod_uid = other.pod_uid;
            workload.outside_namespace |= other.outside_namespace;
            if workload.claimed_by == ClaimedBy::Root {
                workload.claimed_by = other.claimed_by;
            }
        }
        workload
    }
}

/// The root of the host in all hierarchies, from the text of /proc/1/cgroup: empty, unless the host is itself in a
/// cgroup, as one is in WSL or in LXC (systemd's src/basic/cgroup-util.c, cg_get_root_path).
pub fn host_root(text: &[u8]) -> &[u8] {
    let path = paths(text).map_or(&b""[..], |paths| main_path(&paths));
    let groups_of_init: [&[u8]; 3] = [b"/init.scope", b"/system.slice", b"/system"];
    let root = groups_of_init.iter().find_map(|group| path.strip_suffix(*group)).unwrap_or(path);
    if root == b"/" { b"" } else { root }
}

/// The path in each of the [`HIERARCHIES`]; `None` if the text has no path at all.
fn paths(text: &[u8]) -> Option<[Option<&[u8]>; HIERARCHIES.len()]> {
    let mut paths = [None; HIERARCHIES.len()];
    let mut any = false;
    for line in text.split(|&byte| byte == b'\n') {
        // A path may contain colons, so only the first two of a line separate its fields.
        let mut fields = line.splitn(3, |&byte| byte == b':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        any = true;
        for controller in controllers.split(|&byte| byte == b',') {
            if let Some(at) = HIERARCHIES.iter().position(|hierarchy| *hierarchy == controller) {
                paths[at] = Some(path);
            }
        }
    }
    any.then_some(paths)
}

/// The path that tells the unit. Where systemd uses cgroup2 beside version 1, and in an exiting process, the path in
/// its own hierarchy is `/`.
fn main_path<'a>(paths: &[Option<&'a [u8]>; HIERARCHIES.len()]) -> &'a [u8] {
    let [systemd, cgroup2, ..] = *paths;
    systemd.filter(|path| *path != b"/").or(cgroup2).unwrap_or(b"/")
}

/// A path from the root of the host.
fn below<'a>(path: &'a [u8], host_root: &[u8]) -> &'a [u8] {
    match path.strip_prefix(host_root) {
        Some(b"") => b"/",
        Some(rest) if rest.starts_with(b"/") => rest,
        _ => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &[u8]) -> Option<Vec<u8>> {
        Cgroup::parse(text, b"").map(|cgroup| cgroup.path().to_vec())
    }

    #[test]
    fn the_path_is_that_of_systemds_hierarchy_or_of_cgroup2() {
        assert_eq!(path(b"0::/user.slice/a:b::c\n").unwrap(), b"/user.slice/a:b::c");
        let hybrid = b"12:cpu,cpuacct:/x\n1:name=systemd:/system.slice/a.service\n0::/system.slice\n";
        assert_eq!(path(hybrid).unwrap(), b"/system.slice/a.service");
        assert_eq!(path(b"1:name=systemd:/\n0::/y\n").unwrap(), b"/y");
        assert_eq!(path(b"4:memory:/z\n").unwrap(), b"/");
        for no_hierarchy in [&b""[..], b"\n", b"0:\n", b"0"] {
            assert_eq!(path(no_hierarchy), None);
        }
    }

    #[test]
    fn a_container_that_only_a_controller_has_is_found() {
        let docker = [b"/docker/".as_slice(), &[b'a'; 64]].concat();
        let text = [b"1:name=systemd:/\n7:cpu,cpuacct:", docker.as_slice(), b"\n"].concat();
        let cgroup = Cgroup::parse(&text, b"").unwrap();
        assert_eq!(cgroup.path(), b"/");
        assert_eq!(*cgroup.workload().container.unwrap().id, [b'a'; 64]);
    }

    /// Of version 1, users own a part of systemd's hierarchy only.
    #[test]
    fn the_word_of_a_user_stays_his_if_another_hierarchy_has_the_container() {
        let text = [
            b"1:name=systemd:/user.slice/user-7.slice/user@7.service/a.service\n4:memory:/docker/".as_slice(),
            &[b'a'; 64],
        ];
        let cgroup = Cgroup::parse(&text.concat(), b"").unwrap();
        assert!(cgroup.workload().container.is_some());
        assert_eq!(cgroup.workload().claimed_by, ClaimedBy::User(7));
    }

    #[test]
    fn the_root_of_the_host_is_where_its_first_process_is() {
        assert_eq!(host_root(b"0::/init.scope\n"), b"");
        assert_eq!(host_root(b"4:memory:/\n1:name=systemd:/init.scope\n0::/init.scope\n"), b"");
        assert_eq!(host_root(b"0::/\n"), b"");
        assert_eq!(host_root(b""), b"");
        assert_eq!(host_root(b"0::/wsl-user/distro-1/systemd/init.scope\n"), b"/wsl-user/distro-1/systemd");
        assert_eq!(host_root(b"1:name=systemd:/docker/a\n"), b"/docker/a");
    }

    #[test]
    fn only_whole_names_are_cut_off_with_the_root_of_the_host() {
        assert_eq!(below(b"/lxc/a/x", b"/lxc/a"), b"/x");
        assert_eq!(below(b"/lxc/a", b"/lxc/a"), b"/");
        assert_eq!(below(b"/lxc/ab", b"/lxc/a"), b"/lxc/ab");
        assert_eq!(below(b"/x", b""), b"/x");
    }
}
