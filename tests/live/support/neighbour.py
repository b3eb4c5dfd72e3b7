"""A hostile process, where Rust needs unsafe code for what it does: memory in a file system of its own (FUSE), processes that
share a descriptor table, and thousands of forks. It runs as an ordinary user.

neighbour.py DEVICE DIRECTORY PORT hang COUNT     processes whose command line never comes; DEVICE is a FUSE device
neighbour.py DEVICE DIRECTORY PORT slow COUNT     processes whose command line takes 40 ms each time
neighbour.py - - PORT share COUNT DESCRIPTORS     processes that share one table of descriptors
neighbour.py - - PORT processes COUNT THREADS     processes, and threads in the first
neighbour.py - - PORT forks                       forks that end at once, as fast as they can
Each sends datagrams to PORT, so that somebody looks for it. Prints 0 when all of them run, and ends with its stdin.
"""
import ctypes, os, signal, socket, struct, sys, threading, time

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
CLONE_NEWNS, CLONE_NEWUSER, CLONE_FILES = 0x20000, 0x10000000, 0x400
MAP_PRIVATE, MAP_ANONYMOUS, PROT_READ = 2, 0x20, 1
PR_SET_PDEATHSIG, PR_SET_PTRACER, PR_SET_PTRACER_ANY = 1, 0x59616D61, ctypes.c_ulong(-1)
SYS_CLONE = {"x86_64": 56, "aarch64": 220}[os.uname().machine]
PAGE = 4096


def check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def die_with_parent():
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def send_for_ever(port, sender=None):
    """A datagram ten times a second to a socket that nobody reads."""
    sender = sender or socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    while True:
        sender.sendto(b"x" * 100, ("127.0.0.1", port))
        time.sleep(0.1)


def enter_user_namespace():
    uid, gid = os.getuid(), os.getgid()
    check(libc.unshare(CLONE_NEWUSER | CLONE_NEWNS))
    for name, text in [("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")]:
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def attributes(node):
    directory = node == 1
    times = [0] * 3 + [0] * 3
    mode = 0o40755 if directory else 0o100644
    return struct.pack("<QQQQQQIIIIIIIIII", node, 2 * PAGE, 1, *times, mode, 1, 0, 0, 0, PAGE, 0)


def serve(device, delay):
    """Serves a directory with one file, which takes `delay` seconds to read, or for ever where that is None."""
    while True:
        request = os.read(device, 1 << 20)
        opcode, unique, node = struct.unpack_from("<IQQ", request, 4)
        error, reply = 0, b""
        if opcode == 26:  # FUSE_INIT
            reply = struct.pack("<IIIIHHIIHHI", 7, 31, 0, 0, 1000, 1000, PAGE, 1, 0, 0, 0) + bytes(28)
        elif opcode == 1:  # FUSE_LOOKUP
            reply = struct.pack("<QQQQII", 2, 0, 3600, 3600, 0, 0) + attributes(2)
        elif opcode == 3:  # FUSE_GETATTR
            reply = struct.pack("<QII", 3600, 0, 0) + attributes(node)
        elif opcode in (14, 27):  # FUSE_OPEN, FUSE_OPENDIR
            reply = struct.pack("<QII", 1, 0, 0)
        elif opcode == 15:  # FUSE_READ
            if delay is None:
                continue
            time.sleep(delay)
            reply = b"slow " * (PAGE // 5)
        elif opcode in (2, 42):  # FUSE_FORGET, FUSE_BATCH_FORGET
            continue
        else:
            error = -38
        try:
            os.write(device, struct.pack("<IiQ", 16 + len(reply), error, unique) + reply)
            if opcode == 15:
                # The page is gone again at once: FUSE_NOTIFY_INVAL_INODE.
                time.sleep(0.005)
                os.write(device, struct.pack("<IiQQqq", 40, 2, 0, 2, 0, 0))
        except OSError:
            pass  # The process that asked is gone.


def hang(device_path, directory, port, delay, count):
    enter_user_namespace()
    files = []
    for n in range(1 if delay is None else count):
        # Each a file system of its own, so that no answer waits for another.
        device = os.open(device_path, os.O_RDWR)
        place = f"{directory}/{n}"
        os.mkdir(place)
        options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
        check(libc.mount(b"neighbour", place.encode(), b"fuse", 0, options))
        if os.fork() == 0:
            die_with_parent()
            serve(device, delay)
        os.close(device)
        files.append(f"{place}/file")
    for n in range(count):
        if os.fork() == 0:
            hung(port, files[n % len(files)])


def hung(port, path):
    """Keeps the lock of this process's memory (mmap_lock), for which the reader of its command line waits: another process
    reads a page of the file through /proc/PID/mem, which holds the lock while it waits, and a thread waits to change the memory."""
    die_with_parent()
    file = os.open(path, os.O_RDONLY)
    page = check(libc.mmap(None, PAGE, PROT_READ, MAP_PRIVATE, file, 0))
    libc.prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0)
    this = os.getpid()
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    if os.fork() == 0:
        die_with_parent()
        send_for_ever(port, sender)
    if os.fork() == 0:
        die_with_parent()
        memory = os.open(f"/proc/{this}/mem", os.O_RDONLY)
        while True:
            os.pread(memory, 1, page)
    while True:
        time.sleep(0.001)
        other = libc.mmap(None, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        libc.munmap(ctypes.c_void_p(other), PAGE)


def share(port, count, descriptors):
    # The first one is the only socket.
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for _ in range(descriptors):
        os.dup(0)
    for _ in range(count):
        if check(libc.syscall(SYS_CLONE, CLONE_FILES | signal.SIGCHLD, 0, 0, 0, 0)) == 0:
            die_with_parent()
            signal.pause()
    threading.Thread(target=send_for_ever, args=(port,), daemon=True).start()


def processes(port, count, threads):
    for _ in range(count):
        if os.fork() == 0:
            die_with_parent()
            signal.pause()
    threading.stack_size(64 * 1024)
    for _ in range(threads):
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    threading.Thread(target=send_for_ever, args=(port,), daemon=True).start()


def forks(port):
    threading.Thread(target=send_for_ever, args=(port,), daemon=True).start()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    def bomb():
        while True:
            if os.fork() == 0:
                os._exit(0)

    threading.Thread(target=bomb, daemon=True).start()


def main(arguments):
    device, directory, port, act, *numbers = arguments
    numbers = [int(number) for number in numbers]
    if act in ("hang", "slow"):
        hang(device, directory, int(port), None if act == "hang" else 0.04, *numbers)
    else:
        {"share": share, "processes": processes, "forks": forks}[act](int(port), *numbers)
    print(0, flush=True)
    sys.stdin.read()
    os._exit(0)


main(sys.argv[1:])
