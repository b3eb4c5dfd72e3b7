//! The names of containers, from the files of the engines in a directory that stands for the root of a host.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use bwmon::workload::Workload;
use bwmon::workload::container_names::ContainerFiles;
use bwmon::workload::users::Users;
use nix::sys::stat::Mode;
use tempfile::TempDir;

const ID: &str = "0bfaa29e7c3ba52f6c3694393dea4416b0e6047153b47be508893e2d03cf8d5a";
const POD: &str = "kubepods-pod0f3c1a2b_4d5e_4f60_8a7b_9c0d1e2f3a4b.slice";

struct Host {
    root: TempDir,
}

impl Host {
    fn new() -> Self {
        Self { root: TempDir::new().unwrap() }
    }

    fn write(&self, path: &str, content: &str) -> &Self {
        let path = self.root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        self
    }

    fn link(&self, target: &str, path: &str) -> &Self {
        let path = self.root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
        self
    }

    /// The user to whom the files belong.
    fn owner(&self) -> u32 {
        self.root.path().metadata().unwrap().uid()
    }

    /// Gives a user the home directory /home/alice.
    fn with_home(&self, uid: u32) -> &Self {
        self.write("etc/passwd", &format!("alice:x:{uid}:{uid}::/home/alice:/bin/sh\n"))
    }

    fn look_up(&self, cgroup: &str) -> Result<Option<String>, String> {
        let mut users = Users::new(self.root.path());
        users.refresh().unwrap();
        let files = ContainerFiles::new(self.root.path()).unwrap();
        let name = files.look_up(&Workload::of_path(cgroup.as_bytes()), &users);
        name.map(|name| name.map(|name| name.label())).map_err(|error| format!("{error:#}"))
    }

    fn name(&self, cgroup: &str) -> Option<String> {
        self.look_up(cgroup).unwrap()
    }

    fn path(&self, path: &str) -> String {
        self.root.path().join(path).display().to_string()
    }
}

fn docker_config(name: &str) -> String {
    format!(r#"{{"State":{{"Pid":7}},"ID":"{ID}","Name":"/{name}","Config":{{"Env":["Name=/env"]}}}}"#)
}

/// The path of a container of user `uid`.
fn users_own(uid: u32, unit: &str) -> String {
    format!("/user.slice/user-{uid}.slice/user@{uid}.service/user.slice/{unit}")
}

#[test]
fn docker_keeps_the_name_in_the_containers_directory() {
    let host = Host::new();
    let cgroup = format!("/system.slice/docker-{ID}.scope");
    assert_eq!(host.name(&cgroup), None);
    host.write(&format!("var/lib/docker/containers/{ID}/config.v2.json"), &docker_config("web"));
    assert_eq!(host.name(&cgroup).unwrap(), "web");
    assert_eq!(host.name(&format!("/docker/{ID}/init.scope")).unwrap(), "web");
    // The path does not tell the engine: docker run --cgroup-parent=/web.
    assert_eq!(host.name(&format!("/web/{ID}")).unwrap(), "web");
}

#[test]
fn docker_may_keep_its_files_elsewhere() {
    let host = Host::new();
    let cgroup = format!("/docker/{ID}");
    let config = format!("containers/{ID}/config.v2.json");
    host.write(&format!("var/snap/docker/common/var-lib-docker/{config}"), &docker_config("snap"));
    assert_eq!(host.name(&cgroup).unwrap(), "snap");
    host.write("etc/docker/daemon.json", r#"{"data-root": "/data/docker"}"#);
    assert_eq!(host.name(&cgroup), None);
    host.write(&format!("data/docker/{config}"), &docker_config("moved"));
    assert_eq!(host.name(&cgroup).unwrap(), "moved");
}

#[test]
fn a_link_leads_below_the_root() {
    let host = Host::new();
    host.link("/data", "var/lib/docker");
    host.write(&format!("data/containers/{ID}/config.v2.json"), &docker_config("web"));
    assert_eq!(host.name(&format!("/docker/{ID}")).unwrap(), "web");
}

#[test]
fn podman_has_one_list_of_lasting_containers_and_one_of_others() {
    let host = Host::new();
    let cgroup = format!("/machine.slice/libpod-{ID}.scope/container");
    host.write("var/lib/containers/storage/overlay-containers/containers.json", r#"[{"id":"x","names":["other"]}]"#);
    assert_eq!(host.name(&cgroup), None);
    let list = format!(r#"[{{"id":"x","names":["other"]}},{{"id":"{ID}","names":["web"],"metadata":"{{}}"}}]"#);
    host.write("run/containers/storage/vfs-containers/volatile-containers.json", &list);
    assert_eq!(host.name(&cgroup).unwrap(), "web");
}

#[test]
fn the_engines_of_kubernetes_annotate_pod_and_container() {
    let host = Host::new();
    host.write(
        &format!("run/containerd/io.containerd.runtime.v2.task/k8s.io/{ID}/config.json"),
        r#"{"annotations":{"io.kubernetes.cri.container-name":"nginx","io.kubernetes.cri.container-type":"container",
            "io.kubernetes.cri.sandbox-name":"web-7d4b9","io.kubernetes.cri.sandbox-namespace":"shop"}}"#,
    );
    let systemd = format!("/kubepods.slice/{POD}/cri-containerd-{ID}.scope");
    assert_eq!(host.name(&systemd).unwrap(), "shop/web-7d4b9/nginx");
    let cgroupfs = format!("/kubepods/burstable/pod0f3c1a2b-4d5e-4f60-8a7b-9c0d1e2f3a4b/{ID}");
    assert_eq!(host.name(&cgroupfs).unwrap(), "shop/web-7d4b9/nginx");

    let host = Host::new();
    let config = format!("run/containers/storage/overlay-containers/{ID}/userdata/config.json");
    let annotations = |container: &str| {
        format!(
            r#"{{"annotations":{{"io.kubernetes.container.name":"{container}","io.kubernetes.pod.name":"web-7d4b9",
            "io.kubernetes.pod.namespace":"shop"}}}}"#
        )
    };
    let crio = format!("/kubepods.slice/{POD}/crio-{ID}.scope");
    host.write(&config, &annotations("nginx"));
    assert_eq!(host.name(&crio).unwrap(), "shop/web-7d4b9/nginx");
    host.write(&config, &annotations("POD"));
    assert_eq!(host.name(&crio).unwrap(), "shop/web-7d4b9");
}

#[test]
fn nerdctl_annotates_the_name_in_any_namespace() {
    let host = Host::new();
    let config = r#"{"hostname":"0bfaa29e7c3b","annotations":{"nerdctl/name":"web","nerdctl/namespace":"blue"}}"#;
    host.write(&format!("run/containerd/io.containerd.runtime.v2.task/blue/{ID}/config.json"), config);
    assert_eq!(host.name(&format!("/system.slice/nerdctl-{ID}.scope")).unwrap(), "web");
    assert_eq!(host.name(&format!("/blue/{ID}")).unwrap(), "web");
}

#[test]
fn the_kubelets_links_name_the_containers_of_any_engine() {
    let host = Host::new();
    host.link("/nowhere", "var/log/containers/x_y_z-a.log");
    host.link("/nowhere", &format!("var/log/containers/web-7d4b9_shop_nginx-proxy-{ID}.log"));
    let cgroup = format!("/kubepods.slice/{POD}/docker-{ID}.scope");
    assert_eq!(host.name(&cgroup).unwrap(), "shop/web-7d4b9/nginx-proxy");
    // It tells more than the name that the engine was given.
    host.write(&format!("var/lib/docker/containers/{ID}/config.v2.json"), &docker_config("k8s_nginx_web"));
    assert_eq!(host.name(&cgroup).unwrap(), "shop/web-7d4b9/nginx-proxy");
    assert_eq!(host.name(&format!("/docker/{ID}")).unwrap(), "k8s_nginx_web");
}

#[test]
fn the_container_of_a_user_is_looked_up_in_his_own_files_only() {
    let host = Host::new();
    let uid = host.owner();
    let (docker, podman) =
        (users_own(uid, &format!("docker-{ID}.scope")), users_own(uid, &format!("libpod-{ID}.scope")));
    host.write(&format!("var/lib/docker/containers/{ID}/config.v2.json"), &docker_config("of-root"));
    host.write(
        "var/lib/containers/storage/overlay-containers/containers.json",
        &format!(r#"[{{"id":"{ID}","names":["of-root"]}}]"#),
    );
    assert_eq!(host.name(&docker), None);
    host.with_home(uid);
    assert_eq!((host.name(&docker), host.name(&podman)), (None, None));

    host.write(&format!("home/alice/.local/share/docker/containers/{ID}/config.v2.json"), &docker_config("mine"));
    assert_eq!(host.name(&docker).unwrap(), "mine");
    let list = format!(r#"[{{"id":"{ID}","names":["mine-too"]}}]"#);
    host.write(&format!("run/user/{uid}/containers/overlay-containers/volatile-containers.json"), &list);
    assert_eq!(host.name(&podman).unwrap(), "mine-too");
}

#[test]
fn the_claim_of_a_service_gets_no_name() {
    let host = Host::new();
    host.write(
        "var/lib/containers/storage/overlay-containers/containers.json",
        &format!(r#"[{{"id":"{ID}","names":["of-root"]}}]"#),
    );
    assert_eq!(host.name(&format!("/libpod_parent/libpod-{ID}")).unwrap(), "of-root");
    assert_eq!(host.name(&format!("/system.slice/worker.service/libpod-payload-{ID}")), None);
    // Nor does a path without its beginning, which may have been below a user's manager.
    assert_eq!(host.name(&format!("/../libpod_parent/libpod-{ID}")), None);
}

#[test]
fn a_user_cannot_pass_on_a_file_that_is_not_his() {
    let host = Host::new();
    let uid = host.owner() + 1;
    host.with_home(uid);
    host.write("secret", &docker_config("of-root"));
    let config = format!("home/alice/.local/share/docker/containers/{ID}/config.v2.json");
    host.link("/secret", &config);
    let error = host.look_up(&users_own(uid, &format!("docker-{ID}.scope"))).unwrap_err();
    let owner = host.owner();
    assert_eq!(error, format!("cannot read {}: it belongs to user {owner}, not to user {uid}", host.path(&config)));
}

#[test]
fn what_is_no_file_is_not_opened() {
    let host = Host::new();
    let uid = host.owner();
    host.with_home(uid);
    let config = format!("home/alice/.local/share/docker/containers/{ID}/config.v2.json");
    host.link("/fifo", &config);
    nix::unistd::mkfifo(&host.root.path().join("fifo"), Mode::S_IRWXU).unwrap();
    let error = host.look_up(&users_own(uid, &format!("docker-{ID}.scope"))).unwrap_err();
    assert_eq!(error, format!("cannot read {}: it is not a regular file", host.path(&config)));
}

#[test]
fn a_file_that_is_too_large_or_damaged_is_an_error_that_names_it() {
    let host = Host::new();
    let config = format!("var/lib/docker/containers/{ID}/config.v2.json");
    let cgroup = format!("/docker/{ID}");
    let error = || host.look_up(&cgroup).unwrap_err();
    host.write(&config, "{\"Name\":\"/web\"");
    assert_eq!(error(), format!("cannot read {}: EOF while parsing an object at line 1 column 14", host.path(&config)));
    host.write(&config, &"[".repeat(100_000));
    assert!(error().ends_with("recursion limit exceeded at line 1 column 128"), "{}", error());
    fs::File::create(host.path(&config)).unwrap().set_len(16 * 1024 * 1024 + 1).unwrap();
    assert_eq!(error(), format!("cannot read {}: it is larger than 16 MiB", host.path(&config)));
}

#[test]
fn a_file_without_the_name_has_none() {
    let host = Host::new();
    let cgroup = format!("/docker/{ID}");
    for config in ["{}", "[]", "null", r#"{"Name":7}"#, r#"{"Name":"/"}"#, r#"{"Name":["/web"]}"#] {
        host.write(&format!("var/lib/docker/containers/{ID}/config.v2.json"), config);
        assert_eq!(host.name(&cgroup), None, "{config}");
    }
    let podman = format!("/machine.slice/libpod-{ID}.scope");
    for list in [
        r#"{}"#.to_owned(),
        "[7]".to_owned(),
        format!(r#"[{{"id":"{ID}","names":[]}}]"#),
        format!(r#"[{{"id":"{ID}"}}]"#),
    ] {
        host.write("var/lib/containers/storage/overlay-containers/containers.json", &list);
        assert_eq!(host.name(&podman), None, "{list}");
    }
}

#[test]
fn a_host_without_a_root_is_an_error() {
    let error = ContainerFiles::new(Path::new("/nowhere/at/all")).unwrap_err();
    assert_eq!(error.to_string(), "cannot open /nowhere/at/all");
}
