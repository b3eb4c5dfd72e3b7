//! The names of containers, from the files in which the engines keep them.
//!
//! ```text
//! Docker                /var/lib/docker/containers/ID/config.v2.json                     {"Name":"/web", ...}
//! Podman                /var/lib/containers/storage/overlay-containers/containers.json   [{"id":ID,"names":["web"]}, ...]
//! containerd, nerdctl   /run/containerd/io.containerd.runtime.v2.task/NAMESPACE/ID/config.json   annotations
//! CRI-O                 /run/containers/storage/overlay-containers/ID/userdata/config.json       annotations
//! Kubernetes            /var/log/containers/POD_NAMESPACE_CONTAINER-ID.log                       the file's name
//! ```
//! The databases of the engines are not opened: their locks would hold up the engine, or us. LXC and machines need no
//! file, since the path has the name.
//!
//! A look-up takes some 10 μs per file. But the files of a user may be on a file system that hangs, so it belongs in a
//! thread that nobody waits for. The engine may write the file a moment after the container's first process started: a
//! container without a name is worth another look-up, after 50, 200 and 1000 ms for example.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use serde_json::Value;

use super::container::{Container, Runtime, is_id};
use super::users::Users;
use super::{ClaimedBy, Workload};

/// The most bytes of a file that are read: Podman has one for all its containers.
const LARGEST_FILE: u64 = 16 * 1024 * 1024;
/// The most entries of a directory that are looked at.
const MOST_ENTRIES: usize = 16 * 1024;
/// The directories in which containerd keeps what runs: its own, and that of k3s.
const CONTAINERD: [&str; 2] =
    ["run/containerd/io.containerd.runtime.v2.task", "run/k3s/containerd/io.containerd.runtime.v2.task"];
/// The ways in which Podman stores layers; each has a list of containers.
const STORAGE_DRIVERS: [&str; 4] = ["overlay", "btrfs", "vfs", "zfs"];

/// By which names people know a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerName {
    /// Its own name; `None` for the container that only keeps the namespaces of a pod.
    pub name: Option<String>,
    /// The pod that it belongs to.
    pub pod: Option<PodName>,
}

/// By which names people know a pod of Kubernetes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodName {
    /// The namespace in the cluster.
    pub namespace: String,
    /// Its name there.
    pub name: String,
}

impl ContainerName {
    /// The whole name: `web`, or `shop/web-7d4b9/nginx` with namespace and pod.
    pub fn label(&self) -> String {
        let pod = self.pod.iter().flat_map(|pod| [&pod.namespace, &pod.name]);
        pod.chain(&self.name).map(String::as_str).collect::<Vec<_>>().join("/")
    }
}

/// The files of a host.
#[derive(Debug)]
pub struct ContainerFiles {
    root: OwnedFd,
    path: PathBuf,
}

impl ContainerFiles {
    /// The files of the host whose root directory is at `root`. Symbolic links lead to files below it too.
    ///
    /// # Errors
    /// Where `root` cannot be opened as a directory. Before Linux 5.6, which brought openat2(2), each look-up is an error.
    pub fn new(root: impl Into<PathBuf>) -> Result<Self> {
        let path = root.into();
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let root = File::options().read(true).custom_flags(flags.bits()).open(&path);
        Ok(Self { root: root.with_context(|| format!("cannot open {}", path.display()))?.into(), path })
    }

    /// The name of a workload's container; `None` if no file has it, or has it yet.
    ///
    /// The container of a user is looked up in the user's own files only. One that a unit claims to have is not: any
    /// service to which systemd delegates its cgroup can claim the id of another container.
    ///
    /// # Errors
    /// Where a file cannot be read or is not what the engine writes. It names the file.
    pub fn look_up(&self, workload: &Workload, users: &Users) -> Result<Option<ContainerName>> {
        let Some(container @ Container { runtime, .. }) = &workload.container else { return Ok(None) };
        let Some(id) = std::str::from_utf8(&container.id).ok().filter(|id| is_id(id.as_bytes())) else {
            return Ok(None);
        };
        if workload.outside_namespace {
            return Ok(None);
        }
        match workload.claimed_by {
            ClaimedBy::Root => self.of_host(*runtime, id, workload.pod_uid.is_some()),
            ClaimedBy::User(uid) => match users.home(uid) {
                Some(home) => self.of_user(*runtime, id, uid, home),
                None => Ok(None),
            },
            ClaimedBy::Capsule(_) | ClaimedBy::Unit(_) => Ok(None),
        }
    }

    fn of_host(&self, runtime: Runtime, id: &str, in_pod: bool) -> Result<Option<ContainerName>> {
        let mut name = match runtime {
            Runtime::Docker => self.docker(id, self.docker_root()?.as_deref(), 0)?,
            Runtime::Podman => self.podman(id, "var/lib/containers/storage", "run/containers/storage", 0)?,
            Runtime::Crio => self.crio(id)?,
            Runtime::Containerd => self.containerd(id)?,
            // The path does not tell the engine. No two containers have the same id.
            Runtime::Cri | Runtime::Unknown => match self.containerd(id)? {
                None => self.docker(id, self.docker_root()?.as_deref(), 0)?,
                name => name,
            },
            _ => None,
        };
        // Only Docker's own name of a container of a pod tells less than the kubelet's: k8s_nginx_web-7d4b9_shop_...
        if in_pod && name.as_ref().is_none_or(|name| name.pod.is_none()) {
            name = self.kubelet(id)?.or(name);
        }
        Ok(name)
    }

    fn of_user(&self, runtime: Runtime, id: &str, uid: u32, home: &Path) -> Result<Option<ContainerName>> {
        // A home directory that is not UTF-8 has no names.
        let Some(home) = home.to_str().map(|home| home.trim_matches('/')) else { return Ok(None) };
        match runtime {
            Runtime::Docker => self.docker(id, Some(&format!("{home}/.local/share/docker")), uid),
            Runtime::Podman => {
                let (lasting, running) =
                    (format!("{home}/.local/share/containers/storage"), format!("run/user/{uid}/containers"));
                self.podman(id, &lasting, &running, uid)
            }
            _ => Ok(None),
        }
    }

    /// Where Docker keeps its files, if daemon.json moves them (dockerd's option --data-root).
    fn docker_root(&self) -> Result<Option<String>> {
        let root = |settings: Value| Some(settings.get("data-root")?.as_str()?.to_owned());
        Ok(self.json("etc/docker/daemon.json", 0)?.and_then(root))
    }

    /// From moby's daemon/container/container.go.
    fn docker(&self, id: &str, root: Option<&str>, owner: u32) -> Result<Option<ContainerName>> {
        // By default, as the distributions have it and as a snap.
        let roots =
            root.map_or_else(|| vec!["var/lib/docker", "var/snap/docker/common/var-lib-docker"], |root| vec![root]);
        for root in roots {
            if let Some(config) = self.json(&format!("{root}/containers/{id}/config.v2.json"), owner)? {
                let name = config.get("Name").and_then(Value::as_str).map(|name| name.trim_start_matches('/'));
                return Ok(name.and_then(|name| named(name, None)));
            }
        }
        Ok(None)
    }

    /// From containers/storage's containers.go: one list of the containers that outlive a boot, one of the others.
    fn podman(&self, id: &str, lasting: &str, running: &str, owner: u32) -> Result<Option<ContainerName>> {
        for driver in STORAGE_DRIVERS {
            for path in [
                format!("{lasting}/{driver}-containers/containers.json"),
                format!("{running}/{driver}-containers/volatile-containers.json"),
            ] {
                let list = self.json(&path, owner)?;
                let mut containers = list.iter().filter_map(Value::as_array).flatten();
                if let Some(found) = containers.find(|container| container["id"].as_str() == Some(id)) {
                    return Ok(found["names"][0].as_str().and_then(|name| named(name, None)));
                }
            }
        }
        Ok(None)
    }

    /// From cri-o's internal/oci and the kubelet's pkg/kubelet/types/labels.go.
    fn crio(&self, id: &str) -> Result<Option<ContainerName>> {
        let path = format!("run/containers/storage/overlay-containers/{id}/userdata/config.json");
        Ok(self.json(&path, 0)?.and_then(|config| {
            let pod = pod(&config, "io.kubernetes.pod.namespace", "io.kubernetes.pod.name");
            // "POD" is the one that keeps the namespaces.
            let name = annotation(&config, "io.kubernetes.container.name").filter(|name| *name != "POD");
            named(name.unwrap_or_default(), pod)
        }))
    }

    /// From containerd's pkg/cri/annotations and nerdctl's pkg/labels.
    fn containerd(&self, id: &str) -> Result<Option<ContainerName>> {
        for root in CONTAINERD {
            for namespace in self.entries(root)? {
                let Some(config) = self.json(&format!("{root}/{namespace}/{id}/config.json"), 0)? else { continue };
                let pod = pod(&config, "io.kubernetes.cri.sandbox-namespace", "io.kubernetes.cri.sandbox-name");
                let name = annotation(&config, "io.kubernetes.cri.container-name");
                let name = name.or_else(|| annotation(&config, "nerdctl/name"));
                return Ok(named(name.unwrap_or_default(), pod));
            }
        }
        Ok(None)
    }

    /// From the links that the kubelet makes to the logs (pkg/kubelet/kuberuntime/legacy.go). No name of Kubernetes has
    /// an underscore.
    fn kubelet(&self, id: &str) -> Result<Option<ContainerName>> {
        let entries = self.entries("var/log/containers")?;
        Ok(entries.iter().find_map(|entry| {
            let stem = entry.strip_suffix(".log")?.strip_suffix(id)?.strip_suffix('-')?;
            let mut parts = stem.split('_').map(str::to_owned);
            let (name, namespace, container) = (parts.next()?, parts.next()?, parts.next()?);
            named(&container, Some(PodName { namespace, name })).filter(|_| parts.next().is_none())
        }))
    }

    /// A JSON file below the root; `None` if there is none.
    fn json(&self, path: &str, owner: u32) -> Result<Option<Value>> {
        let cannot_read = || format!("cannot read {}", self.path.join(path.trim_start_matches('/')).display());
        let Some(text) = self.read(path, owner).with_context(cannot_read)? else { return Ok(None) };
        serde_json::from_slice(&text).map(Some).with_context(cannot_read)
    }

    /// The content of a file below the root; `None` if there is none. Only root and `owner` may have made it.
    fn read(&self, path: &str, owner: u32) -> Result<Option<Vec<u8>>> {
        // First without opening the file itself: a user may have put a link to a device there, and to open some of those
        // has an effect.
        let Some(found) = self.open(path, OFlag::O_PATH)? else { return Ok(None) };
        let metadata = File::from(found.try_clone()?).metadata()?;
        if !metadata.is_file() {
            bail!("it is not a regular file");
        }
        if owner != 0 && metadata.uid() != owner {
            bail!("it belongs to user {}, not to user {owner}", metadata.uid());
        }
        let mut content = Vec::new();
        let file = File::open(format!("/proc/self/fd/{}", found.as_raw_fd()))?;
        file.take(LARGEST_FILE + 1).read_to_end(&mut content)?;
        if content.len() as u64 > LARGEST_FILE {
            bail!("it is larger than {} MiB", LARGEST_FILE / 1024 / 1024);
        }
        Ok(Some(content))
    }

    /// The names in a directory below the root; none if there is no such directory.
    fn entries(&self, path: &str) -> Result<Vec<String>> {
        let cannot_read = || format!("cannot read {}", self.path.join(path).display());
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let Some(directory) = self.open(path, flags).with_context(cannot_read)? else { return Ok(Vec::new()) };
        let mut directory = Dir::from_fd(directory).with_context(cannot_read)?;
        let names = directory.iter().flatten().take(MOST_ENTRIES).filter_map(|entry| {
            let name = entry.file_name().to_str().ok()?;
            (!name.starts_with('.')).then(|| name.to_owned())
        });
        Ok(names.collect())
    }

    fn open(&self, path: &str, flags: OFlag) -> nix::Result<Option<OwnedFd>> {
        let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        match openat2(&self.root, path, OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve)) {
            Ok(file) => Ok(Some(file)),
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The name of a container, unless nothing of it is known.
fn named(name: &str, pod: Option<PodName>) -> Option<ContainerName> {
    let name = Some(name).filter(|name| !name.is_empty()).map(str::to_owned);
    (name.is_some() || pod.is_some()).then_some(ContainerName { name, pod })
}

/// An annotation in the configuration of an OCI container.
fn annotation<'a>(config: &'a Value, key: &str) -> Option<&'a str> {
    config.get("annotations")?.get(key)?.as_str()
}

fn pod(config: &Value, namespace: &str, name: &str) -> Option<PodName> {
    let text = |key| annotation(config, key).map(str::to_owned);
    Some(PodName { namespace: text(namespace)?, name: text(name)? })
}
