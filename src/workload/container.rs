//! The container in the path of a cgroup, by the names that the engines give to their cgroups.
//!
//! ```text
//! /system.slice/docker-<64 hex>.scope                           a scope of systemd
//! /docker/<64 hex>                                              a directory that the engine makes itself
//! /kubepods/burstable/pod<uid>/<64 hex>                         a container of a Kubernetes pod
//! /lxc.payload.web/system.slice/nginx.service                   a container with a systemd of its own
//! ```
//! Each form comes from the source of its engine; names are compared as a whole, since a word such as `docker` in a name
//! says nothing. Processes that only watch a container, such as conmon, are not in it.

use std::borrow::Cow;

use super::unit;

/// A container, a virtual machine, or a sandboxed application.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Container<'a> {
    /// What runs it.
    pub runtime: Runtime,
    /// By which the runtime knows it: 64 hexadecimal digits where it is an engine's. Of Snap, the name of the snap.
    pub id: Cow<'a, [u8]>,
    /// Its name, if the path has one: of a machine and of LXC the id, of Flatpak the application, of Nomad the task.
    pub name: Option<Cow<'a, [u8]>>,
}

/// What runs a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Runtime {
    /// Docker.
    Docker,
    /// Podman.
    Podman,
    /// containerd: of Kubernetes, or with nerdctl.
    Containerd,
    /// CRI-O.
    Crio,
    /// An engine of Kubernetes; the path does not tell which.
    Cri,
    /// crun without an engine.
    Crun,
    /// Kata Containers: the sandbox, a virtual machine.
    Kata,
    /// LXC, LXD or Incus.
    Lxc,
    /// systemd-nspawn.
    Nspawn,
    /// A container or virtual machine that is registered with systemd-machined.
    Machine,
    /// A virtual machine of libvirt.
    LibvirtQemu,
    /// A container of libvirt.
    LibvirtLxc,
    /// Firecracker, a virtual machine.
    Firecracker,
    /// Garden, of Cloud Foundry.
    Garden,
    /// A task of Amazon ECS on Fargate.
    Ecs,
    /// An allocation of Nomad.
    Nomad,
    /// An application of Flatpak.
    Flatpak,
    /// An application or service of a snap.
    Snap,
    /// The path has the id of a container, and does not tell whose.
    Unknown,
}

impl Runtime {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Containerd => "containerd",
            Self::Crio => "cri-o",
            Self::Cri => "cri",
            Self::Crun => "crun",
            Self::Kata => "kata",
            Self::Lxc => "lxc",
            Self::Nspawn => "systemd-nspawn",
            Self::Machine => "machine",
            Self::LibvirtQemu => "libvirt-qemu",
            Self::LibvirtLxc => "libvirt-lxc",
            Self::Firecracker => "firecracker",
            Self::Garden => "garden",
            Self::Ecs => "ecs",
            Self::Nomad => "nomad",
            Self::Flatpak => "flatpak",
            Self::Snap => "snap",
            Self::Unknown => "unknown",
        }
    }
}

impl<'a> Container<'a> {
    /// A container that has only an id.
    fn new(runtime: Runtime, id: &'a [u8]) -> Self {
        Self { runtime, id: Cow::Borrowed(id), name: None }
    }

    /// A container whose id is its name.
    fn named(runtime: Runtime, name: Cow<'a, [u8]>) -> Option<Self> {
        (!name.is_empty()).then(|| Self { runtime, name: Some(name.clone()), id: name })
    }

    /// What to call it where no file tells its name: `docker/0bfaa29e...`, `lxc/web`.
    pub fn label(&self) -> Vec<u8> {
        [self.runtime.name().as_bytes(), b"/", self.name.as_ref().unwrap_or(&self.id)].concat()
    }
}

/// What a path tells of a container.
#[derive(Debug, Default)]
pub(super) struct Found<'a> {
    pub container: Option<Container<'a>>,
    pub pod_uid: Option<Cow<'a, str>>,
    /// The number of components up to the last one that told something.
    pub depth: usize,
}

/// The outermost container in the components of a path, and the pod that it belongs to.
pub(super) fn find<'a>(components: &[&'a [u8]]) -> Found<'a> {
    let mut found = Found::default();
    for (at, component) in components.iter().enumerate() {
        let (above, below) = (&components[..at], &components[at + 1..]);
        // The process that watches a container of LXC. Nothing below it is one.
        if *component == b"lxc.monitor" || component.starts_with(b"lxc.monitor.") {
            break;
        }
        let in_pod = found.pod_uid.is_some() && found.depth == at;
        if found.pod_uid.is_none()
            && let Some(uid) = pod(component, above)
        {
            (found.pod_uid, found.depth) = (Some(uid), at + 1);
        }
        found.container = directory(component, above, in_pod).or_else(|| {
            let may_be_unit = above.last().is_none_or(|parent| has_units(parent));
            let unit = unit::unit(component).filter(|_| may_be_unit)?;
            of_unit(unit, above, below)
        });
        if found.container.is_some() {
            found.depth = at + 1;
            break;
        }
    }
    found
}

/// Whether a service manager puts units directly below a cgroup of this name. It puts none below a service or scope, so
/// that a service cannot make one there that passes for a container.
fn has_units(component: &[u8]) -> bool {
    unit::slice(component).is_some() || unit::unit(component).and_then(unit::manager).is_some()
}

/// The container for which an engine made this directory itself.
fn directory<'a>(component: &'a [u8], above: &[&[u8]], in_pod: bool) -> Option<Container<'a>> {
    let id = |prefix: &[u8]| component.strip_prefix(prefix).filter(|id| is_id(id));
    if let Some(name) = component.strip_prefix(b"lxc.payload.") {
        return Container::named(Runtime::Lxc, Cow::Borrowed(name));
    }
    match above {
        [.., b"lxc.payload"] | [b"lxc"] => return Container::named(Runtime::Lxc, Cow::Borrowed(component)),
        [b"firecracker"] => return Some(Container::new(Runtime::Firecracker, component)),
        [b"garden"] if has_groups(component, b'-', &[8, 4, 4, 4, 4]) => {
            return Some(Container::new(Runtime::Garden, component));
        }
        [b"ecs", task] if is_fargate(component, task) => return Some(Container::new(Runtime::Ecs, component)),
        _ => {}
    }
    if is_id(component) {
        let runtime = match above {
            [.., b"docker"] => Runtime::Docker,
            _ if in_pod => Runtime::Cri,
            [b"kata_overhead"] => Runtime::Kata,
            [b"ecs", task] if is_hex(task, 32) => Runtime::Docker,
            // containerd names the directory after one of its namespaces, and Docker with --cgroup-parent as it is told.
            [_] => Runtime::Unknown,
            _ => return None,
        };
        return Some(Container::new(runtime, component));
    }
    if let Some(id) = id(b"libpod-payload-").or_else(|| id(b"libpod-")) {
        return Some(Container::new(Runtime::Podman, id));
    }
    if in_pod {
        let of_pod = [(&b"crio-"[..], Runtime::Crio), (b"kata_", Runtime::Kata)];
        if let Some((id, runtime)) = of_pod.into_iter().find_map(|(prefix, runtime)| Some((id(prefix)?, runtime))) {
            return Some(Container::new(runtime, id));
        }
    }
    // The engine was told slice, prefix and id for systemd, and made a directory of them.
    let mut parts = component.split(|&byte| byte == b':');
    let (slice, prefix, id) = (parts.next()?, parts.next()?, parts.next()?);
    let whole = unit::slice(slice).is_some() && is_id(id) && parts.next().is_none();
    whole.then(|| Some(Container::new(runtime_of_prefix(prefix)?, id))).flatten()
}

/// The container for which an engine asked systemd to make this unit.
fn of_unit<'a>(unit: &'a str, above: &[&[u8]], below: &[&[u8]]) -> Option<Container<'a>> {
    let (stem, kind) = unit.rsplit_once('.')?;
    if !matches!(kind, "service" | "scope") {
        return None;
    }
    if let Some((snap, _)) = stem.strip_prefix("snap.").and_then(|rest| rest.split_once('.')) {
        // A second instance of a snap is NAME_INSTANCE.
        let name = snap.split('_').next().unwrap_or(snap);
        return Container::named(Runtime::Snap, Cow::Borrowed(name.as_bytes()));
    }
    // The process that systemd-nspawn itself is.
    let supervisor = below.first().is_some_and(|name| *name == b"supervisor");
    if kind == "service" {
        let machine = stem.strip_prefix("systemd-nspawn@").filter(|_| !supervisor && !below.is_empty())?;
        return Container::named(Runtime::Nspawn, unit::unescape(machine));
    }
    if let Some(machine) = stem.strip_prefix("machine-") {
        return if supervisor { None } else { of_machine(unit::unescape(machine)) };
    }
    if let Some((application, instance)) = stem
        .strip_prefix("app-flatpak-")
        .and_then(|rest| rest.rsplit_once('-'))
        .filter(|(_, id)| is_number(id.as_bytes()))
    {
        let name = Some(unit::unescape(application));
        return Some(Container { name, ..Container::new(Runtime::Flatpak, instance.as_bytes()) });
    }
    if let [b"nomad.slice", b"share.slice" | b"reserve.slice"] = above {
        let (allocation, task) = stem.split_once('.').filter(|(id, _)| is_uuid(id.as_bytes(), b'-'))?;
        let name = Some(Cow::Borrowed(task.as_bytes()));
        return Some(Container { name, ..Container::new(Runtime::Nomad, allocation.as_bytes()) });
    }
    let (prefix, id) = stem.rsplit_once('-').filter(|(_, id)| is_id(id.as_bytes()))?;
    Some(Container::new(runtime_of_prefix(prefix.as_bytes())?, id.as_bytes()))
}

/// What systemd-machined registered under this name. libvirt's names are `qemu-ID-NAME` and `lxc-PID-NAME`.
fn of_machine(name: Cow<'_, [u8]>) -> Option<Container<'_>> {
    for (prefix, runtime) in [(&b"qemu-"[..], Runtime::LibvirtQemu), (b"lxc-", Runtime::LibvirtLxc)] {
        let Some(rest) = name.strip_prefix(prefix) else { continue };
        if let Some(dash) = rest.iter().position(|&byte| byte == b'-')
            && is_number(&rest[..dash])
            && dash + 1 < rest.len()
        {
            return Container::named(runtime, Cow::Owned(rest[dash + 1..].to_vec()));
        }
    }
    Container::named(Runtime::Machine, name)
}

/// The engine that puts this before the id in the name of a scope.
fn runtime_of_prefix(prefix: &[u8]) -> Option<Runtime> {
    match prefix {
        b"docker" => Some(Runtime::Docker),
        b"libpod" => Some(Runtime::Podman),
        b"nerdctl" | b"cri-containerd" => Some(Runtime::Containerd),
        b"crio" => Some(Runtime::Crio),
        b"crun" => Some(Runtime::Crun),
        _ => None,
    }
}

/// The uid of the pod for which the kubelet made this cgroup: `kubepods-burstable-pod<uid>.slice` of systemd, or the
/// directory `kubepods/burstable/pod<uid>` (pkg/kubelet/cm/pod_container_manager_linux.go).
fn pod<'a>(component: &'a [u8], above: &[&[u8]]) -> Option<Cow<'a, str>> {
    if let Some(uid) = component.strip_prefix(b"pod") {
        let is_pod = matches!(above, [.., b"kubepods"] | [.., b"kubepods", b"burstable" | b"besteffort"]);
        return pod_uid(uid, b'-').filter(|_| is_pod).map(Cow::Borrowed);
    }
    // An engine that does not use systemd makes a directory `<slice>:<engine>:<id>`.
    let slice = component.split(|&byte| byte == b':').next().and_then(unit::slice)?;
    let (parent, uid) = slice.strip_suffix(".slice")?.rsplit_once("-pod")?;
    let quality = ["-burstable", "-besteffort"].into_iter().find_map(|quality| parent.strip_suffix(quality));
    let root = quality.unwrap_or(parent);
    (root == "kubepods" || root.ends_with("-kubepods")).then_some(())?;
    pod_uid(uid.as_bytes(), b'_').map(|uid| Cow::Owned(uid.replace('_', "-")))
}

/// A uid, whose groups have `separator` between them; or the hash that a static pod has in its place.
fn pod_uid(uid: &[u8], separator: u8) -> Option<&str> {
    let valid = is_uuid(uid, separator) || is_hex(uid, 32);
    std::str::from_utf8(uid).ok().filter(|_| valid)
}

/// Whether this is `<task>-<digits>`, as Fargate names the containers of a task.
fn is_fargate(component: &[u8], task: &[u8]) -> bool {
    let number = component.strip_prefix(task).and_then(|rest| rest.strip_prefix(b"-"));
    is_hex(task, 32) && number.is_some_and(is_number)
}

/// The form of an engine's ids.
pub(super) fn is_id(bytes: &[u8]) -> bool {
    is_hex(bytes, 64)
}

fn is_uuid(bytes: &[u8], separator: u8) -> bool {
    has_groups(bytes, separator, &[8, 4, 4, 4, 12])
}

/// Whether these are groups of hexadecimal digits of certain lengths, with `separator` between them.
fn has_groups(bytes: &[u8], separator: u8, lengths: &[usize]) -> bool {
    let groups = bytes.split(|&byte| byte == separator);
    groups.clone().count() == lengths.len() && groups.zip(lengths).all(|(group, &length)| is_hex(group, length))
}

fn is_hex(bytes: &[u8], length: usize) -> bool {
    bytes.len() == length && bytes.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_number(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(u8::is_ascii_digit)
}
