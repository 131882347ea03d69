# SPDX-License-Identifier: MIT
"""Exit statuses and error lines: one row a mistake. Each leaves one line on stderr, nothing on stdout, the daemon as it was."""
import os
import re

from harness import Failed, call, case, check, check_equal

P = ["--prompt", "Hello"]
LONG_NAME = "a" * 129

# arguments, exit status, what the line must name
GENERATE = [
    (["generate"], 2, r"prompt"),
    (["generate", "--prompt", "a", "--tokens", "1"], 2, r"prompt|tokens"),
    (["generate", "--prompt", "a", "--prompt-file", "/dev/null"], 2, r"prompt"),
    (["generate", "--chat", "--tokens", "1,2"], 2, r"chat"),
    (["generate", "--nonsense", *P], 2, r"nonsense"),
    (["generate", *P, "surplus"], 2, r"surplus"),
    (["generate", "--prompt"], 2, r"prompt"),
    (["generate", *P, "-n"], 2, r"-n|'n'"),
    (["generate", "--prompt", ""], 1, r"prompt|empty"),
    (["generate", "--tokens", ""], 1, r"tokens"),
    (["generate", "--prompt-file", ""], 1, r"prompt-file"),
    (["generate", "--prompt-file", "/nonexistent/file"], 1, r"/nonexistent/file"),
    (["generate", "--prompt-file", "/"], 1, r"/"),
    (["generate", "--prompt-file", "/dev/null"], 1, r"empty|/dev/null"),
    (["generate", "--adapter", "", *P], 1, r"adapter"),
    (["generate", "--stop", "", *P], 1, r"stop"),
    (["generate", "--seed", "", *P], 1, r"seed"),
    (["generate", "-n", "", *P], 1, r"-n"),
    (["generate", "--temperature", "", *P], 1, r"temperature"),
    (["generate", "-n", "0", *P], 1, r"-n|max|token"),
    (["generate", "-n", "-1", *P], 1, r"-n|max|token"),
    (["generate", "-n", "abc", *P], 1, r"abc"),
    (["generate", "-n", "3x", *P], 1, r"3x"),
    (["generate", "-n", "99999999999999999999", *P], 1, r"99999999999999999999|-n"),
    (["generate", "-n", "9000", *P], 1, r"context|8192"),
    (["generate", "--temperature", "-0.1", *P], 1, r"temperature"),
    (["generate", "--temperature", "nan", *P], 1, r"temperature"),
    (["generate", "--temperature", "inf", *P], 1, r"temperature"),
    (["generate", "--temperature", "warm", *P], 1, r"warm|temperature"),
    (["generate", "--top-p", "0", *P], 1, r"top-p"),
    (["generate", "--top-p", "1.01", *P], 1, r"top-p"),
    (["generate", "--top-p", "nan", *P], 1, r"top-p"),
    (["generate", "--top-k", "-1", *P], 1, r"top-k"),
    (["generate", "--top-k", "1.5", *P], 1, r"top-k"),
    (["generate", "--min-p", "-0.1", *P], 1, r"min-p"),
    (["generate", "--min-p", "1.1", *P], 1, r"min-p"),
    (["generate", "--repetition-penalty", "0", *P], 1, r"repetition.penalty"),
    (["generate", "--repetition-penalty", "-1", *P], 1, r"repetition.penalty"),
    (["generate", "--repetition-penalty", "inf", *P], 1, r"repetition.penalty"),
    (["generate", "--logprobs", "65", *P], 1, r"logprobs"),
    (["generate", "--logprobs", "-1", *P], 1, r"logprobs"),
    (["generate", "--tokens", "49152"], 1, r"49152"),
    (["generate", "--tokens", "1,99999999"], 1, r"99999999"),
    (["generate", "--tokens", "-1"], 1, r"-1|token"),
    (["generate", "--tokens", "1,,2"], 1, r"tokens|1,,2"),
    (["generate", "--tokens", "1,two"], 1, r"two"),
    (["generate", "--adapter", "missing", *P], 1, r"missing"),
    (["generate", "--adapter", "json", "--adapter", "missing", *P], 1, r"missing"),
    (["generate", "--adapter", "json:65", *P], 1, r"65|scale|json"),
    (["generate", "--adapter", "json:nan", *P], 1, r"nan|scale|json"),
    (["generate", "--adapter", "json:inf", *P], 1, r"inf|scale|json"),
    (["generate", "--adapter", "json:", *P], 1, r"json:"),
    (["generate", "--adapter", "json:x", *P], 1, r"json:x|scale"),
    (["generate", "--adapter", "../json", *P], 1, r"\.\./json"),
    (["generate", "--adapter", LONG_NAME, *P], 1, r"aaaa"),
    (["generate", *["--adapter", "json"] * 9, *P], 1, r"adapter"),
    (["score"], 2, r"prompt"),
    (["score", "--prompt", ""], 1, r"prompt|empty"),
    (["score", "--prompt", "a", "-n", "3"], 2, r"-n|'n'"),
    (["score", "--prompt", "a", "--chat"], 2, r"chat"),
    (["score", "--adapter", "missing", *P], 1, r"missing"),
    (["score", "--tokens", "50000"], 1, r"50000"),
]
VERBS = [
    ([], 2, r"verb|usage"),
    (["fly"], 2, r"fly"),
    (["--nonsense", "list"], 2, r"nonsense"),
    (["list", "surplus"], 2, r"surplus"),
    (["status", "--nonsense"], 2, r"nonsense"),
    (["show"], 2, r"show|name"),
    (["show", "missing"], 1, r"missing"),
    (["show", ".hidden"], 1, r"\.hidden"),
    (["remove"], 2, r"remove|name"),
    (["remove", "missing"], 1, r"missing"),
    (["remove", "a/b"], 1, r"a/b"),
    (["remove", ""], 1, r"name|empty"),
    (["pin", "missing"], 1, r"missing"),
    (["unpin", "missing"], 1, r"missing"),
    (["prefetch", "missing"], 1, r"missing"),
    (["verify", "missing"], 1, r"missing"),
    (["export", "json"], 2, r"export|dir"),
    (["export", "missing", "/tmp/never-made"], 1, r"missing"),
    (["export", "json", "/nonexistent/folder/x"], 1, r"/nonexistent/folder"),
    (["import"], 2, r"import|path"),
    (["import", "/nonexistent/adapter"], 1, r"/nonexistent/adapter"),
    (["import", "--name", "", "/tmp"], 1, r"name"),
    (["import", "--name", "-x", "/tmp"], 1, r"-x"),
    (["import", "--name", "a b", "/tmp"], 1, r"a b"),
    (["import", "--name", LONG_NAME, "/tmp"], 1, r"aaaa"),
    (["import", "--name", "x", "/tmp", "/tmp"], 2, r"name"),
    (["import", ""], 1, r"path|empty"),
]


def run_rows(d, rows):
    """Every row is run; the case names all that are wrong."""
    before, wrong = d.names(), []
    for arguments, status, pattern in rows:
        try:
            d.ctl(*arguments).refused("(?i)" + pattern, status)
        except Failed as e:
            wrong.append(str(e))
    check(not wrong, f"{len(wrong)} of {len(rows)} rows:\n  " + "\n  ".join(wrong))
    check_equal(d.names(), before, "adapters afterwards")
    d.generate("-n", 1, *P)


@case(daemon="sanitized")
def generate_and_score_refuse(world, d):
    run_rows(d, GENERATE)


@case(daemon="sanitized")
def other_verbs_refuse(world, d):
    run_rows(d, VERBS)


@case
def no_daemon_is_one_line(world):
    ctl = f"{world.build}/tools/loractl"
    for verb in (["list"], ["status"], ["generate", *P]):
        call([ctl, "--socket", f"{world.scratch}/none.sock", *verb]).refused(r"none\.sock")
    call([ctl, "--socket", "", "list"]).refused(r"socket")
    call([ctl, "--socket", "/" + "x" * 200, "list"]).refused(r"xxxx|socket")


@case
def programs_explain_themselves(world):
    for program in ("daemon/lorad", "tools/loractl", "tools/lorabench"):
        for option, word in (("--help", os.path.basename(program)), ("--version", "0.1")):
            got = call([f"{world.build}/{program}", option]).ok()
            check(word in got.out and not got.err, f"{program} {option}:", got)


LORAD = [
    (["--nonsense"], 2, r"nonsense"),
    (["surplus"], 2, r"surplus"),
    (["--model"], 2, r"model"),
    (["--model", ""], 1, r"model"),
    (["--store", ""], 1, r"store"),
    (["--socket", ""], 1, r"socket"),
    (["--device", "tpu"], 1, r"tpu"),
    (["--device", "cuda:1000"], 1, r"cuda"),
    (["--precision", "f64"], 1, r"f64"),
    (["--kv-type", "int4"], 1, r"int4"),
    (["--adapter-type", "int8"], 1, r"auto or source"),
    (["--isa", "mmx"], 1, r"mmx"),
    (["--threads", "0"], 1, r"threads"),
    (["--threads", "many"], 1, r"many"),
    (["--device-memory", "1X"], 1, r"1X"),
    (["--device-memory", "-1"], 1, r"-1"),
    (["--host-cache", "99999999999999G"], 1, r"99999999999999G|host-cache"),
    (["--context", "0"], 1, r"context"),
    (["--context", "100000"], 1, r"context"),
    (["--config", "/nonexistent/lorad.conf"], 1, r"/nonexistent/lorad\.conf"),
    (["--config", ""], 1, r"config"),
    (["--model", "/nonexistent/model.gguf"], 1, r"/nonexistent/model\.gguf"),
    (["--socket", "/nonexistent/folder/x.sock"], 1, r"/nonexistent/folder"),
    (["--socket", "/" + "x" * 200], 1, r"xxxx|socket"),
]


def refused_start(world, arguments, status, pattern, sanitized=True, model=True, config=None):
    """lorad that does not start: the status, no stdout, and one line on stderr beside its informational ones."""
    build = world.sanitized if sanitized and world.sanitized else world.build
    command = [f"{build}/daemon/lorad", "--store", f"{world.scratch}/store", "--socket", f"{world.scratch}/sock"]
    command += (["--model", world.model] if model else []) + (["--config", config] if config else [])
    got = call(command + arguments, 90)
    check(got.status == status, f"wanted exit {status}:", got)
    check(got.out == "", "stdout is not empty:", got)
    last = got.err.rstrip("\n").rpartition("\n")[2]
    check(re.search("(?i)" + pattern, last), f"the last line does not match /{pattern}/:", got)
    check("Sanitizer" not in got.err and "runtime error" not in got.err, got)


@case
def lorad_refuses_its_options(world):
    wrong = []
    for arguments, status, pattern in LORAD:
        try:
            refused_start(world, arguments, status, pattern)
        except Failed as e:
            wrong.append(str(e))
    check(not wrong, f"{len(wrong)} of {len(LORAD)} rows:\n  " + "\n  ".join(wrong))


CONFIGS = [
    ("wings = 2\n", r"wings"),
    ("model\n", r"model|line 1|:1"),
    ("= 3\n", r"line 1|:1|key"),
    ("# fine\nthreads = many\n", r"many|threads"),
    ("threads = 2\nthreads = 3\n", r"threads"),
    ("context =\n", r"context"),
    ("precision = f64\n", r"f64"),
    ("device-memory = 1G\ndevice_memory = 1G\n", r"device.memory"),
    ("a\0b = 1\n", r"conf8.*NUL"),
    ("x" * 100000 + "\n", r"conf9.*65536"),
]


@case
def config_files_are_judged(world):
    wrong = []
    for i, (text, pattern) in enumerate(CONFIGS):
        path = f"{world.scratch}/conf{i}"
        with open(path, "w") as f:
            f.write(text)
        try:
            refused_start(world, [], 1, pattern, config=path)
        except Failed as e:
            wrong.append(str(e))
    check(not wrong, f"{len(wrong)} of {len(CONFIGS)} rows:\n  " + "\n  ".join(wrong))
    refused_start(world, [], 1, r"model", model=False)


@case
def config_file_gives_options(world):
    """Every option is a key; the command line wins."""
    store, socket, conf = f"{world.scratch}/s", f"{world.scratch}/c.sock", f"{world.scratch}/conf"
    with open(conf, "w") as f:
        f.write(f"# a comment\n\nmodel = {world.model}\nstore = {store}\nsocket = {socket}\ndevice = cpu\nprecision = auto\n"
                "threads = 2\nisa = auto\ndevice_memory = 256M\nhost_cache = 64M\n  context=512  \n")
    d = world.daemon(start=False)
    d.command = [f"{world.build}/daemon/lorad", "--config", conf, "--context", "300"]
    d.socket = socket
    d.start()
    d.ctl("generate", "-n", 400, *P).refused("300|context")
    d.generate("-n", 2, *P)
    check(os.path.isdir(store), "the store of the file was not used")
