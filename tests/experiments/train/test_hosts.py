"""One training on two hosts, whose cable is cut.

The hosts are network namespaces, each with an address and a name of its own,
and a virtual cable between them.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import keras
import pytest
from keras_invdrop.experiments.data.splicing import generate_splicing
from keras_invdrop.experiments.data.splicing import save_splicing

PROGRAM = Path(__file__).with_name("many_devices.py")
NAMES = "one", "two"
APART = ["--net", "--uts", "--mount"]


def why_not():
    """The reason why this machine cannot have such hosts, or None."""
    if keras.backend.backend() != "jax":
        return "`keras.distribution` needs the JAX backend"
    for command in ("ip", "unshare", "nsenter"):
        if shutil.which(command) is None:
            return f"needs the command `{command}` (iproute2, util-linux)"
    tried = subprocess.run(["unshare", *APART, "true"], capture_output=True)
    if tried.returncode:
        return f"may not make namespaces: {tried.stderr.decode().strip()}"
    return None


WHY_NOT = why_not()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))


class Hosts:
    """Two hosts, each a process that keeps its namespaces alive."""

    def __init__(self, directory):
        self.keepers = [
            subprocess.Popen(["unshare", *APART, "sleep", "infinity"])
            for _ in NAMES
        ]
        time.sleep(0.5)  # until they have their namespaces
        one, two = (str(keeper.pid) for keeper in self.keepers)
        subprocess.run(
            ["ip", "link", "add", "cable", "netns", one, "type", "veth"]
            + ["peer", "name", "cable", "netns", two],
            check=True,
        )
        names = directory / "hosts"
        names.write_text("127.0.0.1 localhost\n10.77.0.1 one\n10.77.0.2 two\n")
        for i, name in enumerate(NAMES):
            self.run(
                i,
                f"hostname {name} && mount --bind {names} /etc/hosts && "
                "ip link set lo up && ip link set cable up && "
                f"ip address add 10.77.0.{i + 1}/24 dev cable",
            )

    def on(self, host):
        """The beginning of a command that runs on a host."""
        return ["nsenter", "--target", str(self.keepers[host].pid), *APART]

    def run(self, host, script):
        subprocess.run([*self.on(host), "sh", "-c", script], check=True)

    def cable(self, state):
        """Connects (`"up"`) or cuts (`"down"`) the cable at the second host."""
        self.run(1, f"ip link set cable {state}")

    def close(self):
        for keeper in self.keepers:
            keeper.kill()
            keeper.wait()


@pytest.fixture
def hosts(tmp_path):
    hosts = Hosts(tmp_path)
    yield hosts
    hosts.close()


def training(hosts, directory, heartbeat, epochs):
    """Trains on both hosts; returns the processes after two epochs."""
    data = directory / "exons.npz"
    save_splicing(data, generate_splicing(exons=600, features=100))
    out = directory / "out"
    processes = [
        subprocess.Popen(
            [
                *hosts.on(host), sys.executable, PROGRAM, str(heartbeat),
                "train", "table5/1/invariant", "--width=0.05",
                f"--data={data}", f"--epochs={epochs}", f"--out={out}",
                "--data-parallel", "--coordinator=one:45454",
                "--processes=2", f"--process-id={host}",
            ],
            env={**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for host in range(2)
    ]  # fmt: skip
    while not list(out.glob("[!.]*.npz")):
        assert processes[0].poll() is None, processes[0].stderr.read()
        time.sleep(0.05)
    return processes


@pytest.mark.thorough
def test_cut_for_some_seconds(hosts, tmp_path):
    processes = training(hosts, tmp_path, heartbeat=30, epochs=60)
    try:
        hosts.cable("down")
        backup = next((tmp_path / "out").glob("[!.]*.npz"))
        time.sleep(1)
        before = backup.stat().st_mtime_ns
        time.sleep(4)
        # The processes have waited for one another.
        assert backup.stat().st_mtime_ns == before
        hosts.cable("up")
        for process in processes:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
    written = {path.suffix for path in (tmp_path / "out").iterdir()}
    assert written == {".csv", ".json", ".keras"}


def test_cut_for_good(hosts, tmp_path, record_property):
    processes = training(hosts, tmp_path, heartbeat=5, epochs=100_000)
    try:
        hosts.cable("down")
        start = time.monotonic()
        told = [process.communicate(timeout=60)[1] for process in processes]
        seconds = time.monotonic() - start
    finally:
        for process in processes:
            process.kill()
    assert seconds < 60
    assert all(process.returncode for process in processes)
    # The coordinator reports the process that it no longer hears; the other
    # process reports that it no longer hears the coordinator.
    assert "stopped sending heartbeats):\n1\n" in told[0]
    assert "RPC: /xla.coordination.CoordinationService/" in told[1]
    assert list((tmp_path / "out").glob("[!.]*.npz"))
    record_property("seconds until both have ended", round(seconds, 1))
