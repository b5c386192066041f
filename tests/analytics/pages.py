"""Runs the commands and queries of a page as they are written, and compares their answers with the page.

    pages.py PAGE --bin ALLUVIUM [--bucket URL]

A broker with its default settings is started in a fresh directory, so its ports (9092, 9464) must be free. Of the page:

* `console` blocks: each command ("$ ", continued by "> ") is run by bash in that directory and must end with 0;
  what follows it is what it must print. `cargo run --release -- X` is `alluvium X`, `... serve` is the broker that is
  running, and `cargo test`, of which this may be a part, is left out.
* `sql` blocks are given to `duckdb`, `python` blocks to Python; the `text` block behind one is what its output must
  end in.
* "..." in an expected line stands for any characters, alone in a line for any lines. /home/you/alluvium is the
  directory.
* Blocks with a further word, such as `python spark`, are left out. With --bucket only the console blocks before the
  second heading and the blocks `sql bucket` are run, on that bucket, by AWS_* variables.
* Of README.md only what comes before its first heading of the second level.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request

PATIENCE_S = 120


class Wrong(Exception):
    """The page is not true."""


def blocks(text):
    """(line number, language, further words, lines) of every fenced block, and (line number, heading)."""
    found, heads, inside = [], [], None
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
        elif line.startswith("## "):
            heads.append(number)
    if inside is not None:
        raise Wrong("line %d: a block without an end" % inside[0])
    return found, heads


def commands(lines):
    """(command, expected lines) of a console block."""
    found = []
    for line in lines:
        if line.startswith("$ "):
            found.append(([line[2:]], []))
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


class Surroundings:
    """A directory to work in, and what is found on the way to it."""

    def __init__(self, work, binary, minio_env):
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
        self.env.update(minio_env, HOME=home, TZ="UTC", PATH="%s:%s:%s" % (path, tools, os.environ["PATH"]))

    def run(self, command, given=None):
        done = subprocess.run(command, input=given, cwd=self.work, env=self.env, text=True, timeout=PATIENCE_S,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        return done.returncode, done.stdout, done.stderr

    def serve(self, store):
        """Starts the broker and waits until it is ready."""
        log = open(os.path.join(self.work, "..", "broker.log"), "wb")
        command = ["alluvium", "serve"] + (["--store", store] if store else [])
        process = subprocess.Popen(command, cwd=self.work, env=self.env, stdout=log, stderr=log,
                                   stdin=subprocess.DEVNULL, executable=shutil.which("alluvium", path=self.env["PATH"]))
        end = time.monotonic() + PATIENCE_S
        while True:
            if process.poll() is not None:
                raise Wrong("the broker ended: %s" % self.log())
            try:
                if urllib.request.urlopen("http://127.0.0.1:9464/readyz", timeout=2).status == 200:
                    return process
            except OSError:
                if time.monotonic() > end:
                    raise Wrong("the broker is not ready: %s" % self.log())
                time.sleep(0.05)

    def log(self):
        with open(os.path.join(self.work, "..", "broker.log")) as file:
            return file.read()


def check(number, what, got, expected, here, only_end=False):
    code, output, errors = got
    expected = [line.replace("/home/you/alluvium", here) for line in expected]
    if code != 0:
        raise Wrong("line %d: %s ended with %d:\n%s%s" % (number, what, code, output, errors))
    if not same(expected, output, only_end):
        raise Wrong("line %d: %s printed\n%s\nwhere the page has\n%s" % (number, what, output, "\n".join(expected)))


def run_page(page, around, bucket):
    with open(page, encoding="utf-8") as file:
        found, heads = blocks(file.read())
    count = 0
    last = heads[0] if os.path.basename(page) == "README.md" else None
    for place, (number, language, words, lines) in enumerate(found):
        if last is not None and number > last:
            break
        if words != (["bucket"] if bucket and language == "sql" else []):
            continue
        if bucket and language == "console" and number > heads[1]:
            continue
        if bucket and language == "python":
            continue
        following = found[place + 1] if place + 1 < len(found) else None
        expected = following[3] if following is not None and following[1] == "text" else []
        if language == "console":
            for command, printed in commands(lines):
                if command.startswith("cargo test"):
                    continue
                if re.fullmatch(r"(cargo run --release --|alluvium) serve\n", command):
                    shown = [line.replace("/home/you/alluvium", around.work) for line in printed]
                    log = around.log().splitlines()
                    missing = [line for line in shown if line.rstrip() not in [one.rstrip() for one in log]]
                    if missing:
                        raise Wrong("line %d: the broker does not say %r" % (number, missing))
                else:
                    check(number, command.strip(), around.run(["bash", "-e", "-c", command]), printed, around.work)
                count += 1
        elif language == "sql":
            check(number, "the query", around.run(["duckdb"], "\n".join(lines)), expected, around.work, only_end=True)
            count += 1
        elif language == "python":
            check(number, "the program", around.run([sys.executable, "-"], "\n".join(lines)), expected, around.work)
            count += 1
    return count


def main():
    parser = argparse.ArgumentParser(prog="tests/analytics/pages.py")
    parser.add_argument("page")
    parser.add_argument("--bin", required=True, metavar="ALLUVIUM")
    parser.add_argument("--bucket", metavar="URL", help="run what the page says of buckets, on this one, by AWS_* variables")
    options = parser.parse_args()
    self_test()
    aws = {name: value for name, value in os.environ.items() if name.startswith("AWS_")} if options.bucket else {}
    with tempfile.TemporaryDirectory(prefix="alluvium-pages-") as work:
        around = Surroundings(work, options.bin, aws)
        broker = None
        try:
            broker = around.serve(options.bucket)
            count = run_page(options.page, around, options.bucket is not None)
            print("%s: %d commands and queries, each with the answer that the page has" % (options.page, count))
            if count < 3:
                raise Wrong("only %d were found" % count)
        except Wrong as problem:
            sys.exit("%s: %s" % (options.page, problem))
        finally:
            if broker is not None:
                broker.terminate()
                try:
                    broker.wait(30)
                except subprocess.TimeoutExpired:
                    broker.kill()
                    broker.wait()


if __name__ == "__main__":
    main()
