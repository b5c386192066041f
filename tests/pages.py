"""Runs the commands and queries of a page as they are written, and compares their answers with the page.

    pages.py PAGE --bin ALLUVIUM [--bucket]

Everything happens in a fresh directory, with a home of its own. Of the page:

* `console` blocks: each command ("$ ", continued by "> ") is run by bash in that directory and must end with 0; what
  follows it is what it must print. `export` holds for all commands behind it. `cargo run --release -- X` is
  `alluvium X`, and `cargo test`, of which this may be a part, is left out.
* `alluvium serve` and `alluvium demo` are started and left running, as in a terminal of their own. They must become
  ready and say each of the lines that follow. The line "^C" ends the newest, as Ctrl-C does, and so does the start of
  one with the same ports; the exit code must be 0. A page that starts none finds one running with default settings.
* `sql` blocks are given to `duckdb`, those with the word `spark` to Spark (tests/spark/run.sh), `python` blocks to
  Python; the `text` block behind one is what its output must end in.
* "..." in an expected line stands for any characters, alone in a line for any lines. /home/you/alluvium is the
  directory.
* A block with another further word is left out, except `bucket` with --bucket, and `both`. Without --bucket those without
  a word are run, and `both`. With --bucket, AWS_* variables are passed on, and a page that starts no broker finds one
  that is running on s3://my-bucket/my-cluster.

The ports that the page names (9092, 9464) must be free.
"""

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

PATIENCE_S = 120
SPARK = os.path.join(os.path.dirname(os.path.abspath(__file__)), "spark/run.sh")


class Wrong(Exception):
    """The page is not true."""


def blocks(text):
    """(line number, language, further words, lines) of every fenced block."""
    found, inside = [], None
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("```"):
            if inside is None:
                words = line[3:].split() or [""]
                inside = (number, words[0], words[1:], [])
            else:
                found.append(inside)
                inside = None
        elif inside is not None:
            inside[3].append(line)
    if inside is not None:
        raise Wrong("line %d: a block without an end" % inside[0])
    return found


def commands(lines):
    """(command, expected lines) of a console block."""
    found = []
    for line in lines:
        if line.startswith("$ "):
            found.append(([line[2:]], []))
        elif line == "^C":
            found.append(([line], []))
        elif line.startswith("> ") and found and not found[-1][1]:
            found[-1][0].append(line[2:])
        elif found:
            found[-1][1].append(line)
        else:
            raise Wrong("output before any command: %s" % line)
    return [("\n".join(command) + "\n", expected) for command, expected in found]


def pattern(expected):
    """A regular expression for the expected lines."""
    out = []
    for line in expected:
        if line.strip() == "...":
            out.append("(?:.*\n)*?")
        else:
            out.append("[^\n]*".join(re.escape(part) for part in line.rstrip().split("...")) + "\n")
    return "".join(out)


def same(expected, output, only_end=False):
    output = "".join(line.rstrip() + "\n" for line in output.splitlines())
    match = re.compile("(?:.*\n)*?" + pattern(expected) if only_end else pattern(expected)).fullmatch(output)
    return match is not None


def self_test():
    """The comparison must be able to fail; it runs before every use."""
    assert same(["a", "..."], "a\nb\nc\n") and same(["a ... z"], "a  b z\n") and same([], "")
    assert same(["a|b  "], "a|b\n") and same(["b"], "a\nb\n", only_end=True)
    assert not same(["a"], "a\nb\n") and not same(["a"], "b\n") and not same(["b"], "b\na\n", only_end=True)
    assert not same([], "a\n") and not same(["a...z"], "a\nz\n")
    assert commands(["$ cat <<END", "> x", "> END", "out"]) == [("cat <<END\nx\nEND\n", ["out"])]
    assert commands(["$ a", "out", "^C"]) == [("a\n", ["out"]), ("^C\n", [])]
    assert IS_BROKER.fullmatch("alluvium serve --set a=b\n") and IS_BROKER.fullmatch("alluvium demo\n")
    assert not IS_BROKER.fullmatch("alluvium served\n") and not IS_BROKER.fullmatch("echo alluvium serve\n")
    assert is_meant([], False) and is_meant(["both"], True) and not is_meant([], True)
    assert is_meant(["spark"], False) and is_meant(["spark", "bucket"], True) and not is_meant(["spark", "bucket"], False)
    assert not is_meant(["bucket"], False) and not is_meant(["docker"], True)
    assert option(["a", "--x", "1"], "--x", "0") == "1" and option(["a", "--x"], "--x", "0") == "0"


class Surroundings:
    """A directory to work in, and what is found on the way to it."""

    def __init__(self, work, binary, aws):
        # By HTTP address: the process of a broker, and where its log is.
        self.running, self.logs = {}, 0
        self.work = os.path.join(work, "alluvium")
        home, path = os.path.join(work, "home"), os.path.join(work, "bin")
        for directory in (self.work, home, path):
            os.mkdir(directory)
        os.symlink(os.path.abspath(binary), os.path.join(path, "alluvium"))
        cargo = os.path.join(path, "cargo")
        with open(cargo, "w") as file:
            file.write('#!/bin/sh\n[ "$1 $2 $3" = "run --release --" ] || exit 99\nshift 3\nexec alluvium "$@"\n')
        os.chmod(cargo, 0o755)
        # DuckDB's extension comes from its package: what `INSTALL` would fetch is there already.
        tools = os.path.dirname(sys.executable)
        version = subprocess.run([os.path.join(tools, "duckdb"), "-noheader", "-list", "-c",
                                  "SELECT library_version || '/' || platform FROM pragma_version(), pragma_platform()"],
                                 capture_output=True, text=True, check=True).stdout.strip()
        extensions = os.path.join(home, ".duckdb", "extensions", version)
        os.makedirs(extensions)
        import duckdb_extension_httpfs
        package = os.path.dirname(duckdb_extension_httpfs.__file__)
        source = os.path.join(package, "extensions", version.split("/")[0], "httpfs.duckdb_extension")
        shutil.copy(source, extensions)
        # Settings of the tests' surroundings would be settings of the broker.
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(("ALLUVIUM_", "AWS_", "KAFKA_"))}
        self.env.update(aws, HOME=home, TZ="UTC", PATH="%s:%s:%s" % (path, tools, os.environ["PATH"]))

    def run(self, command, given=None):
        done = subprocess.run(command, input=given, cwd=self.work, env=self.env, text=True, timeout=PATIENCE_S,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        return done.returncode, done.stdout, done.stderr

    def export(self, command):
        """Runs it, and has its variables for what comes after it."""
        done = subprocess.run(["bash", "-e", "-c", command + "env -0"], cwd=self.work, env=self.env, timeout=PATIENCE_S,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if done.returncode == 0:
            self.env = dict(entry.split("=", 1) for entry in done.stdout.split("\0") if "=" in entry)
        return done.returncode, "", done.stderr

    def start(self, command):
        """Starts a broker and waits until it is ready; returns what it has printed."""
        words = shlex.split(command, comments=True)
        http = option(words, "--http-listen", "127.0.0.1:9464")
        if http in self.running:
            self.stop(http)
        self.logs += 1
        path = os.path.join(self.work, "..", "broker%d.log" % self.logs)
        with open(path, "wb") as log:
            process = subprocess.Popen(words, cwd=self.work, env=self.env, stdout=log, stderr=log,
                                       stdin=subprocess.DEVNULL, executable=shutil.which(words[0], path=self.env["PATH"]))
        self.running[http] = (process, path)
        end = time.monotonic() + PATIENCE_S
        while True:
            with open(path) as file:
                text = file.read()
            if process.poll() is not None:
                raise Wrong("%s ended: %s" % (command, text))
            try:
                # What it says to people comes when it is ready, or a little later.
                ready = urllib.request.urlopen("http://%s/readyz" % http, timeout=2).status == 200
                if ready and re.search("Try it|Ctrl-C", text):
                    return text
            except OSError:
                pass
            if time.monotonic() > end:
                raise Wrong("%s is not ready: %s" % (command, text))
            time.sleep(0.05)

    def stop(self, http):
        """Ctrl-C, and it must end well."""
        process, path = self.running.pop(http)
        process.send_signal(signal.SIGINT)
        try:
            code = process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        if code != 0:
            with open(path) as file:
                raise Wrong("a broker ended with %d: %s" % (code, file.read()))


def option(words, name, default):
    """The value of an option of a command."""
    return words[words.index(name) + 1] if name in words[:-1] else default


def check(number, what, got, expected, here, only_end=False):
    code, output, errors = got
    expected = [line.replace("/home/you/alluvium", here) for line in expected]
    if code != 0:
        raise Wrong("line %d: %s ended with %d:\n%s%s" % (number, what, code, output, errors))
    if not same(expected, output, only_end):
        raise Wrong("line %d: %s printed\n%s\nwhere the page has\n%s" % (number, what, output, "\n".join(expected)))


IS_BROKER = re.compile(r"(cargo run --release --|alluvium) (serve|demo)( .*)?\n(.*\n)*")


def is_meant(words, bucket):
    """Whether a block with these words is to be run."""
    words = [word for word in words if word != "spark"]
    return words in ([["bucket"], ["both"]] if bucket else [[], ["both"]])


def run_command(around, number, command, printed):
    if IS_BROKER.fullmatch(command):
        said = [line.rstrip() for line in around.start(command).splitlines()]
        shown = [line.replace("/home/you/alluvium", around.work).rstrip() for line in printed]
        missing = [line for line in shown if line != "..." and not any(same([line], one) for one in said)]
        if missing:
            raise Wrong("line %d: the broker does not say %r, but\n%s" % (number, missing, "\n".join(said)))
        return
    if command == "^C\n":
        around.stop(list(around.running)[-1])
        return
    run = around.export if command.startswith("export ") else lambda one: around.run(["bash", "-e", "-c", one])
    check(number, command.strip(), run(command), printed, around.work)


def run_page(page, around, bucket):
    with open(page, encoding="utf-8") as file:
        found = blocks(file.read())
    meant = [block for block in found if is_meant(block[2], bucket)]
    lines = [line for _, language, _, lines in meant if language == "console" for line in lines]
    if not any(IS_BROKER.fullmatch(line[2:] + "\n") for line in lines if line.startswith("$ ")):
        around.start("alluvium serve" + (" --store s3://my-bucket/my-cluster" if bucket else ""))
    count = 0
    for place, (number, language, words, lines) in enumerate(found):
        if not is_meant(words, bucket):
            continue
        following = found[place + 1] if place + 1 < len(found) else None
        expected = following[3] if following is not None and following[1] == "text" else []
        if language == "console":
            for command, printed in commands(lines):
                if not command.startswith("cargo test"):
                    run_command(around, number, command, printed)
                    count += 1
        elif language == "sql":
            engine = SPARK if "spark" in words else "duckdb"
            check(number, "the query", around.run([engine], "\n".join(lines)), expected, around.work, only_end=True)
            count += 1
        elif language == "python":
            check(number, "the program", around.run([sys.executable, "-"], "\n".join(lines)), expected, around.work)
            count += 1
    return count


def main():
    parser = argparse.ArgumentParser(prog="tests/pages.py")
    parser.add_argument("page")
    parser.add_argument("--bin", required=True, metavar="ALLUVIUM")
    parser.add_argument("--bucket", action="store_true", help="run what the page says of buckets, with AWS_* variables")
    options = parser.parse_args()
    self_test()
    aws = {name: value for name, value in os.environ.items() if name.startswith("AWS_")} if options.bucket else {}
    with tempfile.TemporaryDirectory(prefix="alluvium-pages-") as work:
        around = Surroundings(work, options.bin, aws)
        try:
            count = run_page(options.page, around, options.bucket)
            for http in list(around.running):
                around.stop(http)
            print("%s: %d commands and queries, each with the answer that the page has" % (options.page, count))
            if count < 3:
                raise Wrong("only %d were found" % count)
        except Wrong as problem:
            sys.exit("%s: %s" % (options.page, problem))
        finally:
            for process, _ in around.running.values():
                process.kill()
                process.wait()


if __name__ == "__main__":
    main()
