// SPDX-License-Identifier: Apache-2.0
//! Attempts to get out, each with its control: the same attempt outside succeeds.

use super::bench::Bench;
use super::on_each_level;
use crate::runtime::Isolation;
use postern_shim::bubblewrap;
use postern_shim::disk::Disk;
use postern_shim::folder::RunFolder;
use postern_shim::spec::{IsolatedBy, Spec};
use std::fs;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

on_each_level!(
    this_machines_network_cannot_be_reached,
    there_is_no_internet_and_no_dns,
    abstract_sockets_of_this_machine_cannot_be_reached,
    files_of_this_machine_are_not_there,
    the_root_cannot_be_written,
    there_are_no_capabilities_and_no_way_to_new_ones,
    a_neighbours_slot_and_socket_are_not_there,
    kernel_doors_are_shut,
    set_user_id_programs_stay_what_they_are,
);

/// Every file of a process's own in `/proc` is the agent's to write for all that mounts and seccomp say.
const WRITE: &str = "echo renamed > /proc/self/comm && echo written";

/// Takes a kernel that has Landlock: `postern doctor` tells.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn landlock_refuses_what_the_mounts_of_namespaces_do_not() {
    let bench = Bench::open(Isolation::Namespaces).expect("namespaces are never left out");
    let sandbox = bench.sandbox().await;
    // The control: the same user with the same mounts, and no `sandboxd` that restricts what it starts.
    let folder = RunFolder::new(bench.settings.run_root.join(sandbox.id.as_str()));
    let spec: Spec = serde_json::from_slice(&fs::read(folder.spec()).expect("reads")).expect("a spec");
    let IsolatedBy::Namespaces { bwrap } = &spec.isolation else { panic!("{:?}", spec.isolation) };
    let mut words = bubblewrap::arguments(&spec, &folder, &Disk::of(&folder));
    words.truncate(words.iter().position(|word| word == "--").expect("a program follows"));
    let mut bare = Command::new(bwrap);
    bare.args(words).args(["--", "/bin/sh", "-c", WRITE]).env_clear();
    if let Some(guest) = spec.guest {
        bare.uid(guest).gid(guest);
    }
    let bare = bare.output().expect("bwrap runs");
    assert_eq!(String::from_utf8_lossy(&bare.stdout), "written\n", "{bare:?}");
    let refused = sandbox.shell(WRITE).await;
    assert_eq!(refused.stdout, "", "nothing but Landlock refuses it: {refused:?}");
    assert!(refused.stderr.contains("Permission denied"), "{refused:?}");
    bench.close().await;
}

/// Runs Python on this machine, for the control.
fn outside(script: &str) -> String {
    let output = Command::new("/usr/bin/python3").args(["-I", "-c", script]).output().expect("python");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

async fn this_machines_network_cannot_be_reached(bench: &Bench) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let address = listener.local_addr().expect("bound");
    let script = format!(
        "import socket\ntry: socket.create_connection(('127.0.0.1', {}), 3); print('reached')\nexcept OSError as e: print('refused')",
        address.port()
    );
    let sandbox = bench.sandbox().await;
    assert_eq!(sandbox.python(&script).await.stdout, "refused\n");
    assert_eq!(outside(&script), "reached\n");
    let interfaces = sandbox.shell("cat /proc/net/dev | tail -n +3 | cut -d: -f1 | tr -d ' '").await;
    assert_eq!(interfaces.stdout, "lo\n");
}

async fn there_is_no_internet_and_no_dns(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    // 192.0.2.1 (RFC 5737), the metadata service, a public resolver: no route to any.
    let script = "
import socket
for family, address in ((2, '192.0.2.1'), (2, '169.254.169.254'), (2, '1.1.1.1'), (10, '2606:4700:4700::1111')):
    for kind in (1, 2):
        s = socket.socket(family, kind); s.settimeout(3)
        try: s.connect((address, 53)); print('routed', address, kind)
        except OSError as e: print(e.errno in (101, 113, 99), end=' ')
try: socket.getaddrinfo('example.com', 80); print('resolved')
except socket.gaierror: print('unresolved')";
    assert_eq!(sandbox.python(script).await.stdout, "True True True True True True True True unresolved\n");
    // The control: on this machine there is a route to itself at least.
    assert_eq!(
        outside("import socket\ns=socket.socket(2,2); s.connect(('127.0.0.1',53)); print('routed')"),
        "routed\n"
    );
}

async fn abstract_sockets_of_this_machine_cannot_be_reached(bench: &Bench) {
    let name = format!("postern-test-{}", bench.settings.installation);
    let address = SocketAddr::from_abstract_name(&name).expect("a name");
    let listener = UnixListener::bind_addr(&address).expect("binds");
    let script = format!(
        "import socket\ns=socket.socket(1,1)\ntry: s.connect('\\0{name}'); print('reached')\nexcept OSError: print('refused')"
    );
    let sandbox = bench.sandbox().await;
    assert_eq!(sandbox.python(&script).await.stdout, "refused\n");
    UnixStream::connect_addr(&address).expect("the control");
    drop(listener);
}

async fn files_of_this_machine_are_not_there(bench: &Bench) {
    let secret = bench.folder().join("secret");
    fs::write(&secret, "secret").expect("ours");
    let sandbox = bench.sandbox().await;
    let path = secret.display();
    let output = sandbox.shell(&format!(
        "cat {path}; ls -A /root /home /var/lib /etc/shadow /usr/local /usr/src /mnt /boot; cat /etc/passwd"
    )).await;
    assert!(!output.stdout.contains("secret"), "{output:?}");
    let shown: Vec<&str> = output.stdout.lines().filter(|line| !line.is_empty()).collect();
    let expected = [
        "/home:",
        "user",
        "/usr/local:",
        "/usr/src:",
        "root:x:0:0:root:/:/usr/sbin/nologin",
        "user:x:1000:1000:user:/home/user:/bin/bash",
        "user:x:0:0:user:/home/user:/bin/bash",
        "nobody:x:65534:65534:nobody:/:/usr/sbin/nologin",
    ];
    let unexpected: Vec<&&str> = shown.iter().filter(|line| !expected.contains(*line)).collect();
    assert!(unexpected.is_empty(), "{unexpected:?}");
    assert!(fs::read_to_string("/etc/passwd").expect("the control").lines().count() > 5);
}

async fn the_root_cannot_be_written(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    let script = "
for f in / /usr /usr/bin /usr/local /etc /opt/postern /run/postern /var /proc /sys /dev/../etc; do
  touch $f/x 2>/dev/null && echo wrote $f
done
for f in /etc/passwd /opt/postern/sandboxd /usr/bin/env; do (echo x >> $f) 2>/dev/null && echo changed $f; done
for f in /data/user /data/scratch /home/user /tmp /dev/shm; do touch $f/x && echo control $f; done";
    let expected =
        "control /data/user\ncontrol /data/scratch\ncontrol /home/user\ncontrol /tmp\ncontrol /dev/shm\n";
    assert_eq!(sandbox.shell(script).await.stdout, expected);
}

async fn there_are_no_capabilities_and_no_way_to_new_ones(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    let output = sandbox.shell("grep -hE '^(Cap|NoNewPrivs|Uid)' /proc/self/status /proc/1/status").await;
    let uids = vec![bench.agent_uid().to_string(); 4].join("\t");
    for line in output.stdout.lines() {
        let (name, value) = line.split_once(":\t").expect("a field");
        let expected = match name {
            "NoNewPrivs" => "1",
            "Uid" => uids.as_str(),
            _ => "0000000000000000",
        };
        assert_eq!(value, expected, "{name}");
    }
    assert!(output.stdout.lines().count() >= 12, "{output:?}");
}

async fn a_neighbours_slot_and_socket_are_not_there(bench: &Bench) {
    let (sandbox, neighbour) = (bench.sandbox().await, bench.sandbox().await);
    neighbour.shell("echo secret > /data/user/file").await;
    let (theirs, _) = bench.runtime.user_files(&neighbour.id);
    let socket = bench.runtime.prepare(&neighbour.id).expect("its folder");
    let listener = UnixListener::bind(&socket).expect("binds");
    let output = sandbox.shell(&format!(
        "cat {} {}/file /proc/*/root/data/user/file; ls -A /data/user /run/postern; cat /proc/[0-9]*/environ | grep -c {}",
        socket.display(), theirs.display(), neighbour.id
    )).await;
    assert_eq!(output.stdout.replace("/data/user:", "").replace("/run/postern:", "").trim(), "0");
    // The control: both are there for whoever sees this machine's folders.
    assert_eq!(fs::read_to_string(theirs.join("file")).expect("there"), "secret\n");
    UnixStream::connect(&socket).expect("there");
    drop(listener);
    if let (Some(ours), Some(theirs)) =
        (bench.runtime.user_files(&sandbox.id).1, bench.runtime.user_files(&neighbour.id).1)
    {
        assert_ne!(ours, theirs, "each is a user of its own on this machine");
    }
}

async fn kernel_doors_are_shut(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    // Each is called with arguments that this machine's kernel does not refuse for themselves:
    // only a refusal (EPERM, ENOSYS, EACCES, EAFNOSUPPORT) counts, never EINVAL or EFAULT.
    let script = "
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
none = ctypes.c_void_p(None)
path = ctypes.c_char_p(b'/tmp')
attr = ctypes.create_string_buffer(b'\\1\\0\\0\\0\\x70\\0\\0\\0' + b'\\0'*104)
calls = dict(
    unshare_user=(272, 0x10000000), unshare_mount=(272, 0x20000), clone_user=(56, 0x10000000|17, 0, 0, 0, 0),
    mount=(165, ctypes.c_char_p(b'none'), path, ctypes.c_char_p(b'tmpfs'), 0, none), umount=(166, path, 0),
    pivot_root=(155, path, path), chroot=(161, path), open_tree=(428, -100, path, 1), fsopen=(430, ctypes.c_char_p(b'tmpfs'), 0),
    keyctl=(250, 0, -3, 1), add_key=(248, ctypes.c_char_p(b'user'), ctypes.c_char_p(b'a'), ctypes.c_char_p(b'b'), 1, -3),
    bpf=(321, 0, attr, 112), perf=(298, attr, 0, -1, -1, 0), userfaultfd=(323, 0), io_uring=(425, 1, ctypes.create_string_buffer(120)),
    ptrace=(101, 16, os.getppid(), 0, 0), vm_read=(310, os.getppid(), none, 0, none, 0, 0),
    kexec=(246, 0, 0, none, 0), reboot=(169, 0xfee1dead, 672274793, 0, none), sethostname=(170, path, 4), swapon=(167, path, 0),
    init_module=(175, none, 0, path), settime=(227, 0, none), vsock=(41, 40, 1, 0), alg=(41, 38, 5, 0), packet=(41, 17, 3, 0),
    raw=(41, 2, 3, 1), handle=(304, -100, none, 0), fanotify=(300, 0, 0), personality=(135, 0x0400000), setns=(308, 0, 0),
)
for name, (number, *arguments) in calls.items():
    if name == 'clone_user':
        result = libc.syscall(number, *arguments)
        if result == 0: os._exit(0)
    else: result = libc.syscall(number, *arguments)
    error = ctypes.get_errno()
    if result >= 0 or error not in (1, 13, 38, 97, 94, 93): print(name, result, error)
print('done')";
    let output = sandbox.python(script).await;
    let open: Vec<&str> = output.stdout.lines().collect();
    // gVisor's own kernel grants these two, of its own keyrings and execution domains; each of
    // the others would be a request to a kernel that they are no part of.
    let granted_inside = ["keyctl", "personality"];
    let expected: Vec<&str> = if bench.level() == Isolation::Gvisor {
        open.iter()
            .filter(|line| granted_inside.iter().any(|name| line.starts_with(name)))
            .copied()
            .chain(["done"])
            .collect()
    } else {
        vec!["done"]
    };
    assert_eq!(open, expected, "{output:?}");
    // The control: as root of this machine some of the same succeed.
    if rustix::process::geteuid().is_root() {
        let control = "import ctypes\nlibc=ctypes.CDLL(None)\nprint(libc.syscall(272, 0x20000), libc.syscall(161, ctypes.c_char_p(b'/tmp')), libc.syscall(41, 17, 3, 0) >= 0)";
        assert_eq!(outside(control), "0 0 True\n");
    }
}

async fn set_user_id_programs_stay_what_they_are(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    let script = "
cp /usr/bin/id /data/user/id && chmod 6755 /data/user/id && /data/user/id -u
for program in /usr/bin/su /usr/bin/mount /usr/bin/passwd; do [ -e $program ] && (exec $program --version) >/dev/null 2>&1; done
awk '/ \\/(usr|data) / && !/nosuid/' /proc/self/mounts";
    let output = sandbox.shell(script).await;
    let first = output.stdout.lines().next().map(str::to_owned);
    assert_eq!(first, Some(bench.agent_uid().to_string()), "{output:?}");
    if bench.level() == Isolation::Namespaces {
        assert_eq!(output.stdout.lines().count(), 1, "mounted without nosuid: {output:?}");
    }
}
