# SPDX-License-Identifier: MIT
"""loractl top on a terminal and off it; lorabench's traces, bursts and targets."""
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios

from harness import call, case, check, check_equal, until

P = ["--prompt", "Once upon a time"]


@case(daemon="gguf")
def top_shows_what_happens(world, d):
    """Under load: figures of the time between two looks; one frame without control codes."""
    bench = subprocess.Popen([f"{world.build}/tools/lorabench", "--socket", d.socket, "--adapters", "3", "--clients", "3", "--prompt-tokens", "16",
                              "--gen-tokens", "16", "--duration", "30"], stdout=subprocess.DEVNULL)
    try:
        until(lambda: d.status()["requests"]["running"] > 0, what="a running request")
        got = d.ctl("top", "--json", "--interval", "2").json()
        for key in ("requests_s", "prompt_tokens_s", "generated_tokens_s", "steps_s", "step_ms", "hits_device_s"):
            check(got[key] > 0, f"{key} is {got[key]} under load")
        check(got["rows_per_step"] >= 1 and 1.9 < got["seconds"] < 60, got)
        check(got["pool_bytes"] == got["pool_kv_bytes"] + got["pool_adapter_bytes"] + got["pool_free_bytes"], "pool:", got)
        check_equal(sum(got["states"].values()), len(d.names()), "adapters by state")
        check({a["name"] for a in got["adapters"]} >= set(sorted(d.names())[:3]), "adapters in use:", got["adapters"])
        check([u["uid"] for u in got["users"]] == [os.getuid()] and got["users"][0]["generated_tokens_s"] > 0, "users:", got["users"])
        frame = d.ctl("top", "--once", "--interval", "0.2").ok().out
        check(frame.startswith("lorad ") and all(c == "\n" or " " <= c <= "~" for c in frame), repr(frame))
        check(re.search(r"^requests +[0-9.]+/s  running \d", frame, re.M) and re.search(r"^pool .*\[#*\+*=*\.*\]", frame, re.M), frame)
    finally:
        bench.kill()
        bench.wait()
    d.ctl("top").refused("terminal")
    d.ctl("top", "--once", "--interval", "0").refused("interval")
    call([f"{world.build}/tools/loractl", "--socket", f"{world.scratch}/none.sock", "top", "--once"]).refused("none.sock")


def run_top_on_terminal(world, d, how_to_end):
    """Runs top on a terminal of 12 x 40 until its second frame, ends it, and returns what it drew and its exit status."""
    master, slave = pty.openpty()
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 12, 40, 0, 0))
    before = termios.tcgetattr(slave)
    top = subprocess.Popen([f"{world.build}/tools/loractl", "--socket", d.socket, "top", "--interval", "0.2"], stdin=slave, stdout=slave,
                           start_new_session=True)
    drawn = b""
    while drawn.count(b"\x1b[H") < 2:
        check(select.select([master], [], [], 20)[0], "top draws nothing")
        drawn += os.read(master, 65536)
    check(termios.tcgetattr(slave) != before, "the terminal echoes keys")
    how_to_end(top, master)
    status = top.wait(20)
    while select.select([master], [], [], 0.2)[0]:
        drawn += os.read(master, 65536)
    check(termios.tcgetattr(slave) == before, "the terminal's settings were not restored")
    os.close(master)
    os.close(slave)
    return drawn.decode(), status


@case(daemon="gguf")
def top_gives_the_terminal_back(world, d):
    for end, wanted in ((lambda top, master: os.write(master, b"q"), 0), (lambda top, master: top.send_signal(signal.SIGINT), -signal.SIGINT),
                        (lambda top, master: top.send_signal(signal.SIGTERM), -signal.SIGTERM)):
        drawn, status = run_top_on_terminal(world, d, end)
        check_equal(status, wanted, "exit status")
        check(drawn.startswith("\x1b[?1049h\x1b[?25l") and drawn.endswith("\x1b[?25h\x1b[?1049l"), "the screen was not given back:", repr(drawn[-99:]))
        frames = drawn.split("\x1b[H")[1:-1]
        check(all(len(re.sub(r"\x1b\[[KJ]", "", row)) < 40 for f in frames for row in f.split("\r\n")), "a row is too long:", repr(frames))


@case(daemon="gguf")
def lorabench_follows_a_trace(world, d):
    bench = [f"{world.build}/tools/lorabench", "--socket", d.socket, "--adapters", 3, "--clients", 2, "--json"]
    trace = f"{world.scratch}/trace"
    with open(trace, "w") as f:
        f.write(f"# seconds adapter prompt generated\n0 0 40 4\n0.1 {sorted(d.names())[2]} 40 5\n0.3 - 40 6\n")
    got = call([*bench, "--trace", trace, "--deadline-ms", 60000, "--shared-prefix", 32]).json()
    check_equal((got["requests"], got["tokens"], got["errors"], got["offered"], got["attainment"]), (3, 15, 0, 3, 1.0), "trace")
    check(got["seconds"] >= 0.3, "it did not wait for the last arrival:", got["seconds"])
    call([*bench, "--trace", trace, "--rate", 3]).refused("--rate", 2)
    with open(trace, "a") as f:
        f.write("0.2 0 40 4\n")
    call([*bench, "--trace", trace]).refused(f"{trace}:5: 0.2: before")
    write = [f"{world.source}/tests/bench/trace.py", "--adapters", 3, "--rate", 20, "--duration", 1, "--prompt", "4-20", "--gen", "1-4"]
    write += ["--cv", 2, "--power", 0.5, "--drift", 0.3]
    made = call(write).ok().out
    check_equal(call(write).out, made, "the same trace twice")
    with open(trace, "w") as f:
        f.write(made)
    lines = [line.split() for line in made.splitlines() if not line.startswith("#")]
    got = call([*bench, "--trace", trace]).json()
    check_equal((got["requests"], got["tokens"]), (len(lines), sum(int(line[3]) for line in lines)), "written trace")
    bursts = [*bench, "--prompt-tokens", 8, "--gen-tokens", 2, "--rate", 40, "--cv", 3, "--power", 0.4, "--requests", 20, "--target-ms", 60000]
    got = call(bursts).json()
    check_equal((got["requests"], got["in_target"], got["aborted"]), (20, 20, 0), "bursts")


@case(daemon="gguf")
def targets_are_judged(world, d):
    check_equal(len(d.generate("-n", 3, "--ignore-eos", "--first-token-ms", 60000, "--deadline-ms", 60000, *P)["tokens"]), 3, "tokens")
    check("cached_tokens" in d.ctl("score", "--json", "--deadline-ms", 60000, *P).json(), "score says nothing of cached tokens")
    d.ctl("generate", "--json", "-n", 4000, "--ignore-eos", "--deadline-ms", 300, *P).refused("300 ms")
    bench = [f"{world.build}/tools/lorabench", "--socket", d.socket, "--adapters", 0, "--clients", 8, "--prompt-tokens", 1000, "--gen-tokens", 50]
    got = call([*bench, "--rate", 1000, "--requests", 200, "--deadline-ms", 100, "--json"]).json() # more than any machine bears
    check(got["aborted"] > 0 and got["errors"] == 0 and got["aborted"] + got["requests"] == got["offered"] == 200, got)
    d.ctl("generate", "--deadline-ms", "604800001", *P).refused("deadline-ms")
    d.ctl("score", "--first-token-ms", "-1", *P).refused("first-token-ms")
