"""What scripts/bench and scripts/bench_service share: a running service, roofs, verdicts."""
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

# Numbers appear as they are measured, in a file too.
sys.stdout.reconfigure(line_buffering=True)
ROOT = pathlib.Path(__file__).resolve().parent.parent
BIN = ROOT / "build/release/bin"
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "pergola"


def prepare():
    """Sets up, builds, and prints which machine and commit the numbers are of."""
    subprocess.run([ROOT / "scripts/setup"], check=True)
    subprocess.run([ROOT / "scripts/build", "release"], check=True)
    commit = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"],
                            capture_output=True, text=True).stdout.strip()
    cpu = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text()).group(1)
    print(f"{cpu}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, commit {commit}")


def random_model():
    """The random 1.1B Llama shape in bf16."""
    path = CACHE / "random-1.1b"
    subprocess.run([sys.executable, ROOT / "scripts/random_model", path], check=True)
    return path


def demo_model():
    return subprocess.run([ROOT / "scripts/demo_model"], capture_output=True, text=True,
                          check=True).stdout.strip()


def roofs():
    """Read bandwidth in bytes/s and f32 multiply-adds in FLOP/s, now."""
    out = subprocess.run([BIN / "kernels_bench", "--benchmark_filter=^$"], capture_output=True,
                         text=True, check=True)
    read, flops = re.search(r"read ([\d.]+) GB/s.*multiply-add ([\d.]+) GFLOP/s",
                            out.stdout).groups()
    return float(read) * 1e9, float(flops) * 1e9


def cpu_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid):
    pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def verdict(name, value, goal, unit, at_most=False):
    met = value <= goal if at_most else value >= goal
    print(f"{name:<46} {value:10.2f} {unit}  (goal {'at most ' if at_most else ''}{goal}: "
          f"{'met' if met else 'MISSED'})")


def bench(address, *flags, check=True):
    """pergola bench against `address`: its JSON."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/bench.json"
        subprocess.run([BIN / "pergola", "bench", "--connect", address, "--json", path,
                        *map(str, flags)], check=check, stdout=subprocess.DEVNULL,
                       stderr=None if check else subprocess.DEVNULL)
        return json.loads(pathlib.Path(path).read_text())


class Service:
    """pergola up around a `with` block."""

    def __init__(self, model, *flags):
        self.model, self.flags = str(model), flags

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory()
        self.run_file = f"{self.folder.name}/run.json"
        self.log = open(f"{self.folder.name}/up.log", "w+")
        self.process = subprocess.Popen(
            [BIN / "pergola", "up", self.model, "--listen", "127.0.0.1:0",
             "--run-file", self.run_file, "--log-level", "warn", *self.flags], stdout=self.log,
             stderr=subprocess.STDOUT)
        for _ in range(1800):
            time.sleep(0.1)
            self.log.seek(0)
            ready = re.search(r"^READY (\S+)", self.log.read(), re.M)
            if ready:
                self.address = ready.group(1)
                return self
            if self.process.poll() is not None:
                break
        self.log.seek(0)
        self.__exit__()
        sys.exit(f"{self.model} did not become ready:\n{self.log.read()}")

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()

    def bench(self, streams, prompt, output, requests):
        return bench(self.address, "--streams", streams, "--prompt-tokens", prompt,
                     "--output-tokens", output, "--requests", requests)


class NullService:
    """A coordinator and a group that computes nothing (tests/bench/null_group.cc)."""

    def __init__(self, model, group_flags=(), coordinator_flags=()):
        self.model, self.group_flags, self.coordinator_flags = (
            str(model), group_flags, coordinator_flags)

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory()
        run_file = pathlib.Path(self.folder.name) / "run.json"
        self.coordinator = subprocess.Popen(
            [BIN / "pergola-coordinator", "--model", self.model, "--listen", "127.0.0.1:0",
             "--internal-listen", "127.0.0.1:0", "--run-file", run_file, "--log-level", "error",
             *map(str, self.coordinator_flags)], stderr=subprocess.DEVNULL)
        for _ in range(200):
            time.sleep(0.05)
            if run_file.exists() and run_file.read_text().strip():
                break
        else:
            self.coordinator.terminate()
            sys.exit("the coordinator did not start")
        run = json.loads(run_file.read_text())
        self.address = run["public_address"]
        self.group = subprocess.Popen(
            [BIN / "null_group", "--model", self.model, "--connect", run["internal_address"],
             *map(str, self.group_flags)], stderr=subprocess.DEVNULL)
        time.sleep(1)
        return self

    def __exit__(self, *_):
        for process in (self.group, self.coordinator):
            process.terminate()
            process.wait()
