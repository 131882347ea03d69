# SPDX-License-Identifier: MIT
"""The daemon's life: ready, second daemon, signals, damaged models, clients that come and go."""
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time

from cases.contract import refused_start
from harness import Failed, Skipped, call, case, check, check_equal, together, until

P = ["--prompt", "Once upon a time"]


@case
def ready_once_and_nothing_else_on_stdout(world):
    d = world.daemon()
    check(os.path.isdir(d.store) and os.path.exists(d.socket) and os.path.exists(d.socket + ".control"), "store, socket or control socket is missing")
    d.generate("-n", 2, *P)
    check_equal(d.term(), b"", "more on stdout than READY")


@case
def a_users_default_places(world):
    """Without --socket and --store: $XDG_RUNTIME_DIR/lorad/lorad.sock and $XDG_STATE_HOME/lorad, for daemon and clients."""
    home = tempfile.mkdtemp(prefix="lorad-user-")
    user = {}
    if os.geteuid() == 0:  # root's places are the system's: be nobody, who may not see this build and this model
        user = dict(user=65534, group=65534, extra_groups=[])
    lorad, loractl, model = f"{home}/lorad", f"{home}/loractl", f"{home}/model.gguf"
    libraries = os.path.dirname(world.installed("libloraclient.so"))
    copies = [(world.installed("sbin/lorad"), lorad), (world.installed("bin/loractl"), loractl), (world.model, model)]
    for source, target in copies + [(f"{libraries}/{f}", f"{home}/{f}") for f in os.listdir(libraries) if ".so" in f]:
        shutil.copy(source, target)
        os.chmod(target, 0o755)
    env = dict(os.environ, XDG_RUNTIME_DIR=f"{home}/run", XDG_STATE_HOME=f"{home}/state", LD_LIBRARY_PATH=home)
    for folder in (home, f"{home}/run"):
        os.makedirs(folder, exist_ok=True)
        if user:
            os.chown(folder, 65534, 65534)
    with open(f"{world.scratch}/log", "wb") as log:
        p = subprocess.Popen([lorad, "--model", model], stdout=subprocess.PIPE, stderr=log, env=env, cwd="/", **user)
    try:
        check_equal(p.stdout.readline(), b"READY\n", "stdout")
        for path in ("run/lorad/lorad.sock", "run/lorad/lorad.sock.control", "state/lorad"):
            check(os.path.exists(f"{home}/{path}"), f"{path} is missing")
        for verb in (["generate", "-n", 2, *P], ["status"], ["import", world.adapter("json")] if not user else ["list"]):
            call([loractl, *verb], env=env, cwd="/", **user).ok()
        p.terminate()
        check_equal(p.wait(timeout=10), 0, "exit status after SIGTERM")
    finally:
        p.kill()
        p.communicate()
        shutil.rmtree(home)


@case
def sigterm_with_work_in_flight(world):
    """Ends within 10 s, and every client learns how its request ended."""
    d = world.daemon()
    clients = [d.ctl_start("generate", "--json", "-n", 8000, "--ignore-eos", *P) for _ in range(3)]
    until(lambda: d.metric("lorad_requests_running") == 3, what="three running requests")
    begin = time.monotonic()
    d.term()
    check(time.monotonic() - begin < 10, "SIGTERM took longer than 10 s")
    for c in clients:
        out, err = c.communicate(timeout=20)
        check_equal((c.returncode, out, err.count(b"\n")), (1, b"", 1), f"how a client ended ({err!r})")


@case
def sigint_ends_it_too(world):
    d = world.daemon()
    d.process.send_signal(signal.SIGINT)
    check_equal(d.process.wait(timeout=10), 0, "exit status after SIGINT")


@case
def sighup_is_survived(world):
    d = world.daemon()
    d.process.send_signal(signal.SIGHUP)
    d.generate("-n", 2, *P)


@case
def second_daemon_is_refused(world):
    d = world.daemon()
    base = [f"{world.build}/daemon/lorad", "--model", world.model]
    for store, sock, word in ((d.store, f"{d.folder}/other.sock", "store"), (f"{d.folder}/other", d.socket, "lorad.sock")):
        got = call([*base, "--store", store, "--socket", sock], 60)
        check(got.status == 1 and got.out == "" and word in got.err.splitlines()[-1], f"a second daemon ({word}):", got)
    d.generate("-n", 2, *P)


@case
def systemd_starts_it_by_its_sockets(world):
    """As the units do: two listening sockets in blocking mode, a notify socket, a watchdog that wants a word each second."""
    with tempfile.TemporaryDirectory(prefix="lorad-units-") as folder:
        paths, listeners = [f"{folder}/s", f"{folder}/s.control"], []
        for path, kind in zip(paths, (socket.SOCK_SEQPACKET, socket.SOCK_STREAM)):
            listeners.append(socket.socket(socket.AF_UNIX, kind))
            listeners[-1].bind(path)
            listeners[-1].listen(16)
            os.set_blocking(listeners[-1].fileno(), True)
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notify.bind(f"{folder}/notify")
        notify.settimeout(30)
        client, control = (s.fileno() for s in listeners)
        script = f'LISTEN_PID=$$ WATCHDOG_PID=$$ exec "$@" 8<&{client} 9<&{control} 3<&8 4<&9'
        env = dict(os.environ, LISTEN_FDS="2", LISTEN_FDNAMES="client:control", WATCHDOG_USEC="1000000", NOTIFY_SOCKET=f"{folder}/notify")
        with open(f"{world.scratch}/log", "wb") as log:
            p = subprocess.Popen(["bash", "-c", script, "bash", f"{world.build}/daemon/lorad", "--model", world.model, "--store", f"{folder}/store"],
                                 stdout=subprocess.PIPE, stderr=log, env=env, pass_fds=(client, control))
        try:
            check_equal(p.stdout.readline(), b"READY\n", "stdout")
            for path in paths:
                check(os.path.exists(path), f"{path} is missing")
            ctl = lambda *args: call([f"{world.build}/tools/loractl", "--socket", paths[0], *args], 20).ok()
            for _ in range(2):
                ctl("status"), ctl("generate", "-n", 2, *P), ctl("list")
            said = b""
            while b"READY=1" not in said:
                said += notify.recv(4096) + b"\n"
            end, words = time.monotonic() + 2.5, 0
            while time.monotonic() < end:  # idle is progress
                words += b"WATCHDOG=1" in notify.recv(4096)
            check(words >= 2, f"{words} words to the watchdog in 2.5 s")
            p.terminate()
            check_equal(p.wait(timeout=10), 0, "exit status after SIGTERM")
            check(all(map(os.path.exists, paths)), "it removed sockets that are systemd's")
        finally:
            p.kill()
            p.communicate()
            [s.close() for s in [*listeners, notify]]


@case
def stale_sockets_are_replaced(world):
    d = world.daemon()
    d.kill()
    check(os.path.exists(d.socket), "kill -9 removes no socket")
    d.start()
    d.generate("-n", 2, *P)
    d.term()
    with open(d.socket, "w") as f:
        f.write("not a socket")
    got = call([*d.command], 60)
    check(got.status == 1 and "lorad.sock" in got.err.splitlines()[-1], "a plain file in the socket's place:", got)
    check(os.path.getsize(d.socket) == 12, "it was overwritten")


@case
def store_that_is_none_is_refused(world):
    store = f"{world.scratch}/store"
    os.makedirs(store)
    with open(f"{store}/data.mdb", "wb") as f:
        f.write(os.urandom(65536))
    refused_start(world, [], 1, "store|data.mdb", sanitized=False)
    with open(f"{world.scratch}/file", "w") as f:
        f.write("x")
    refused_start(world, ["--store", f"{world.scratch}/file"], 1, f"{world.scratch}/file", sanitized=False)


def edited(world, name, edit):
    """A copy of the model's file, changed."""
    path = f"{world.scratch}/{name}.gguf"
    shutil.copyfile(world.model, path)
    with open(path, "r+b") as f:
        edit(f)
    return path


def replace_in_head(old, new):
    def edit(f):
        head = f.read(1 << 22)
        check(head.count(old) >= 1 and len(old) == len(new), f"{old!r} is not in the model's head")
        f.seek(head.index(old))
        f.write(new)
    return edit


def put(at, data):
    def edit(f):
        f.seek(at)
        f.write(data)
    return edit


def after(name, data):
    """Overwrites the value of a scalar key of the metadata (name, u32 type, value)."""
    def edit(f):
        head = f.read(1 << 22)
        f.seek(head.index(name) + len(name) + 4)
        f.write(data)
    return edit


@case
def damaged_models_are_refused(world):
    """Each ends start-up with one line that names the file; the sanitizer build watches."""
    size = os.path.getsize(world.model)
    architecture = b"general.architecture" + struct.pack("<IQ", 8, 5)
    rows = [
        ("empty", lambda f: f.truncate(0)), ("head-cut", lambda f: f.truncate(20)), ("metadata-cut", lambda f: f.truncate(100000)),
        ("data-cut", lambda f: f.truncate(size // 2)), ("last-byte", lambda f: f.truncate(size - 1)),
        ("magic", put(0, b"GGML")), ("version", put(4, struct.pack("<I", 99))), ("tensors-huge", put(8, struct.pack("<Q", 1 << 60))),
        ("keys-huge", put(16, struct.pack("<Q", 1 << 60))), ("architecture", replace_in_head(architecture + b"llama", architecture + b"mamba")),
        ("pre-split", replace_in_head(b"smollm" + struct.pack("<Q", 21), b"qwen99" + struct.pack("<Q", 21))),
        ("heads", after(b"llama.attention.head_count", struct.pack("<I", 7))), ("layers", after(b"llama.block_count", struct.pack("<I", 31))),
        ("width", after(b"llama.embedding_length", struct.pack("<I", 0))), ("kv-heads", after(b"llama.attention.head_count_kv", struct.pack("<I", 2))),
    ]
    wrong = []
    for name, edit in rows:
        try:
            path = edited(world, name, edit)
            refused_start(world, ["--model", path], 1, f"{name}.gguf", sanitized=True)
        except Failed as e:
            wrong.append(f"{name}: {e}")
        os.unlink(path)
    for what, path in (("a folder without config.json", world.scratch), ("a device", "/dev/zero"), ("a text file", __file__)):
        try:
            refused_start(world, ["--model", path], 1, path, sanitized=True)
        except Failed as e:
            wrong.append(f"{what}: {e}")
    check(not wrong, f"{len(wrong)} rows:\n  " + "\n  ".join(wrong))


@case
def damaged_folders_are_refused(world):
    if not world.hf:
        raise Skipped("no Hugging Face folder was given (--hf)")

    def config(old, new):
        def edit(folder):
            with open(f"{world.hf}/config.json") as f:
                text = f.read()
            check(old in text, f"{old!r} is not in config.json")
            os.unlink(f"{folder}/config.json")
            with open(f"{folder}/config.json", "w") as f:
                f.write(text.replace(old, new))
        return edit

    def cut(folder):
        os.unlink(f"{folder}/model.safetensors")
        with open(f"{world.hf}/model.safetensors", "rb") as f, open(f"{folder}/model.safetensors", "wb") as g:
            g.write(f.read(1 << 20))

    rows = [
        ("no-config", lambda p: os.unlink(f"{p}/config.json"), "config.json"), ("no-tokenizer", lambda p: os.unlink(f"{p}/tokenizer.json"), "tokenizer.json"),
        ("no-weights", lambda p: os.unlink(f"{p}/model.safetensors"), "safetensors"), ("cut", cut, "model.safetensors"),
        ("no-theta", config('"rope_theta"', '"rope_zeta"'), "rope_theta"), ("architecture", config("LlamaForCausalLM", "MambaForCausalLM"), "Mamba"),
        ("width", config('"hidden_size": 576', '"hidden_size": 640'), "hidden_size|shape|embed_tokens"),
        ("layers", config('"num_hidden_layers": 30', '"num_hidden_layers": 31'), r"layers\.30"), ("text", config("{", "hello {"), "config.json"),
        ("activation", config('"silu"', '"gelu"'), "hidden_act|gelu"), ("bias", config('"attention_bias": false', '"attention_bias": true'), "attention_bias"),
        ("scaling", config('"rope_type": "default"', '"rope_type": "yarn"'), "rope_type|yarn"),
    ]
    wrong = []
    for name, edit, pattern in rows:
        folder = f"{world.scratch}/{name}"
        os.makedirs(folder)
        for f in os.listdir(world.hf):
            os.symlink(f"{world.hf}/{f}", f"{folder}/{f}")
        edit(folder)
        try:
            refused_start(world, ["--model", folder], 1, pattern)
        except Failed as e:
            wrong.append(f"{name}: {e}")
    check(not wrong, f"{len(wrong)} of {len(rows)} rows:\n  " + "\n  ".join(wrong))


@case(daemon="sanitized")
def strangers_at_the_sockets(world, d):
    """Whatever comes over the two sockets, the daemon goes on."""
    for path in (d.socket, d.socket + ".control"):
        for message in (b"", b"\0", b"{", b"GET / HTTP/1.1\r\n\r\n", os.urandom(4000), b"[" * 3000 + b"\0", b'{"verb": 7}\0', b"\xff" * 16):
            s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                s.settimeout(5)
                s.connect(path)
                s.send(message)
                s.recv(4096)
            except OSError:
                pass
            finally:
                s.close()
    crowd = []
    for _ in range(100):
        s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        s.settimeout(5)
        s.connect(d.socket)
        crowd.append(s)
    d.generate("-n", 2, *P)
    for s in crowd:
        s.close()
    d.generate("-n", 2, *P)


@case(daemon="gguf")
def a_client_that_stops_reading(world, d):
    """Its request pauses; others go on."""
    p = d.ctl_start("generate", "-n", 4000, "--ignore-eos", *P)
    check(p.stdout.read(8), "no text came")
    p.send_signal(signal.SIGSTOP)
    for _ in range(3):
        d.generate("-n", 20, *P)
    p.kill()
    p.communicate()
    until(lambda: d.metric("lorad_requests_running") == 0, what="no running request")


@case(daemon="gguf")
def many_clients_at_once(world, d):
    got = together([lambda i=i: d.generate("-n", 6, "--ignore-eos", "--prompt", f"{i} and") for i in range(48)])
    check(all(len(g["tokens"]) == 6 for g in got), "a request is short of tokens")


@case(daemon="gguf")
def status_and_metrics(world, d):
    status = d.status()
    check(isinstance(status, dict) and status, "status is no JSON object")
    d.ctl("status").ok()
    text = d.ctl("metrics").ok().out
    names = set()
    for line in text.splitlines():
        if line.startswith("#"):
            check(line.split()[1] in ("HELP", "TYPE"), f"not Prometheus text: {line!r}")
        elif line:
            name, value = line.rsplit(" ", 1)
            float(value)
            names.add(name.partition("{")[0])
    check(len(names) >= 10, f"only {len(names)} metrics")
    check(all(n.startswith("lorad_") for n in names), "names without lorad_:", [n for n in names if not n.startswith("lorad_")])


@case(daemon="gguf")
def lorabench_reports(world, d):
    bench = [f"{world.build}/tools/lorabench", "--socket", d.socket, "--clients", 4, "--prompt-tokens", 16, "--gen-tokens", 8, "--requests", 8, "--json"]
    fields = ["req_s", "out_tok_s", "ttft_p50_ms", "ttft_p95_ms", "ttft_p99_ms", "itl_p50_ms", "itl_p95_ms", "itl_p99_ms", "errors", "hits"]
    for adapters in (["--adapters", 0], ["--adapters", 3], ["--adapters", 3, "--zipf", 1.1, "--seed", 4], ["--adapters", "p*"]):
        got = call([*bench, *adapters]).json()
        check(set(fields) <= set(got), f"lorabench {adapters} lacks", set(fields) - set(got))
        check(got["errors"] == 0 and got["req_s"] > 0 and set(got["hits"]) == {"device", "host", "store"}, got)
    call([*bench, "--adapters", 1000]).refused("1000|adapters")
    call([*bench[:-1], "--adapters", 0, "--clients", 0, "--json"]).refused("clients")
    call([*bench, "--nonsense"]).refused("nonsense", 2)
    call([bench[0], "--socket", f"{world.scratch}/none.sock", *bench[3:], "--adapters", 0]).refused("none.sock")


@case(daemon="gguf")
def the_c_example_streams(world, d):
    """As built here, and compiled again from its source by the installed header, library and pkg-config file."""
    runtime = f"{world.scratch}/run"
    os.makedirs(f"{runtime}/lorad")
    os.symlink(d.socket, f"{runtime}/lorad/lorad.sock")
    env = dict(os.environ, XDG_RUNTIME_DIR=runtime)
    got = call([f"{world.build}/libclient/examples/stream", "pirate", "Hello"], 60, env=env).ok()
    check(got.out.startswith("Arr"), "the example with the pirate adapter:", got)
    call([f"{world.build}/libclient/examples/stream", "missing", "Hello"], 60, env=env).refused("missing")
    pc = world.installed("loraclient.pc")
    pc_env = dict(os.environ, PKG_CONFIG_PATH=os.path.dirname(pc), PKG_CONFIG_SYSROOT_DIR=f"{world.root}/installed")
    flags = call(["pkg-config", "--cflags", "--libs", "loraclient"], env=pc_env).ok().out.split()
    call(["cc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-o", f"{world.scratch}/stream", f"{world.source}/libclient/examples/stream.c", *flags]).ok()
    again = call([f"{world.scratch}/stream", "pirate", "Hello"], 60, env=dict(env, LD_LIBRARY_PATH=os.path.dirname(world.installed("libloraclient.so"))))
    check_equal((again.status, again.out), (0, got.out), "the example compiled against the installed library")
    check(len(open(f"{world.source}/libclient/examples/stream.c").readlines()) <= 60, "the example has more than 60 lines")
