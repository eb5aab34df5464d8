"""Limits and memory of the container, from simulated cgroup v1, cgroup v2 and /proc files and from a real cgroup."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import cgroup
from devtools.server import ROOT
from segment import container, process

MIB = 1 << 20
UNLIMITED_V1 = 0x7FFFFFFFFFFFF000


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that replaces /sys/fs/cgroup."""
    monkeypatch.setattr(container, "CGROUP", tmp_path)
    return tmp_path


GIB = 1 << 30


@pytest.fixture(params=[(4 * GIB, 4 * GIB), (64 * GIB, 8 * GIB)], ids=["small", "large"])
def limit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The limit without a setting or a cgroup's limit: the machine's memory, at most 8 GiB."""
    machine, expected = request.param
    monkeypatch.setattr(container, "machine_memory", lambda: machine)
    return int(expected)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def in_group(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """Replace the content of /proc/self/cgroup, which lists the cgroups of this process."""
    real = Path.read_text

    def read_text(path: Path, *arguments: str, **named: str) -> str:
        return "\n".join(lines) + "\n" if str(path) == "/proc/self/cgroup" else real(path, *arguments, **named)

    monkeypatch.setattr(Path, "read_text", read_text)


class TestMemoryLimit:
    def test_without_a_control_group(self, tree: Path, limit: int) -> None:
        assert container.memory_limit() == limit

    def test_setting_or_cgroup_can_exceed_the_default_limit(self, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(container, "machine_memory", lambda: 64 * GIB)
        assert container.memory_limit(32 * GIB) == 32 * GIB
        assert container.memory_limit(100 * GIB) == 64 * GIB
        write(tree / "memory.max", str(16 * GIB))
        assert container.memory_limit() == 16 * GIB

    def test_v2(self, tree: Path) -> None:
        write(tree / "memory.max", str(512 * MIB))
        assert container.memory_limit() == 512 * MIB

    def test_v2_without_a_limit(self, tree: Path, limit: int) -> None:
        write(tree / "memory.max", "max")
        assert container.memory_limit() == limit

    def test_v1(self, tree: Path) -> None:
        write(tree / "memory" / "memory.limit_in_bytes", str(256 * MIB))
        assert container.memory_limit() == 256 * MIB

    def test_v1_without_a_limit(self, tree: Path, limit: int) -> None:
        write(tree / "memory" / "memory.limit_in_bytes", str(UNLIMITED_V1))
        assert container.memory_limit() == limit

    def test_the_smallest_limit_of_all_ancestors_applies(self, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        in_group(monkeypatch, "0::/pod/one")
        write(tree / "pod/one/memory.max", str(512 * MIB))
        write(tree / "pod/memory.max", str(300 * MIB))
        write(tree / "pod/other/memory.max", str(10 * MIB))
        assert container.memory_limit() == 300 * MIB

    def test_v1_group_below_the_root(self, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        in_group(monkeypatch, "5:cpu,cpuacct:/", "4:memory:/pod/one", "0::/")
        write(tree / "memory/memory.limit_in_bytes", str(UNLIMITED_V1))
        write(tree / "memory/pod/one/memory.limit_in_bytes", str(200 * MIB))
        assert container.memory_limit() == 200 * MIB

    def test_a_setting_can_only_lower_the_limit(self, tree: Path) -> None:
        write(tree / "memory.max", str(512 * MIB))
        assert container.memory_limit(256 * MIB) == 256 * MIB
        assert container.memory_limit(1024 * MIB) == 512 * MIB


class TestCpus:
    def test_without_a_quota_the_cpu_affinity_applies(self, tree: Path) -> None:
        write(tree / "cpu.max", "max 100000")
        assert container.cpus() == len(os.sched_getaffinity(0))

    @pytest.mark.parametrize(("quota", "expected"), [("100000 100000", 1), ("8000 100000", 1), ("50000 100000", 1)])
    def test_v2_quota(self, tree: Path, quota: str, expected: int) -> None:
        write(tree / "cpu.max", quota)
        assert container.cpus() == expected

    def test_v2_quota_of_several(self, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
        write(tree / "cpu.max", "200000 100000")
        assert container.cpus() == 2

    def test_v1_quota(self, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
        write(tree / "cpu/cpu.cfs_period_us", "100000")
        write(tree / "cpu/cpu.cfs_quota_us", "400000")
        assert container.cpus() == 4
        write(tree / "cpu/cpu.cfs_quota_us", "-1")
        assert container.cpus() == 8


def test_held_counts_what_was_allocated() -> None:
    before = container.held()
    block = np.ones(64 * MIB, np.uint8)
    assert 60 * MIB < container.held() - before < 80 * MIB
    del block
    process.trim_heap()
    assert container.held() - before < 16 * MIB
    assert container.peak() > before


class TestHeldOnOtherKernels:
    """/proc of gVisor (pkg/sentry/fsimpl/proc/task_files.go, pkg/sentry/mm/procfs.go) and of older Linux kernels."""

    STATUS = "Name:\tpython\nVmSize:\t 900000 kB\nVmRSS:\t 300000 kB\nVmData:\t 700000 kB\n"
    SMAPS = "".join(
        f"7f00000{i}0000-7f00000{i}8000 rw-p 00000000 00:00 0\n"
        f"Rss:            {rss:8} kB\nPss:            {rss:8} kB\nAnonymous:      {anonymous:8} kB\n"
        for i, (rss, anonymous) in enumerate([(200_000, 100_000), (60_000, 0), (40_000, 40_000)])
    )

    @pytest.fixture
    def process(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """The folder of this process in a simulated /proc."""
        monkeypatch.setattr(container, "PROC", tmp_path)
        write(tmp_path / str(os.getpid()) / "cmdline", "python")
        return tmp_path / str(os.getpid())

    def test_gvisor(self, process: Path) -> None:
        write(process / "status", self.STATUS)
        write(process / "smaps", self.SMAPS)
        assert container.held() == container.anonymous() == 140_000 << 10

    def test_gvisor_without_mappings(self, process: Path) -> None:
        """All resident memory is counted: too high a value makes the service slow, too low a value gets it killed."""
        write(process / "status", self.STATUS)
        assert container.held() == container.anonymous() == 300_000 << 10

    def test_linux_without_proportional_shares_by_kind(self, process: Path) -> None:
        write(process / "status", self.STATUS + "RssAnon:\t 120000 kB\nRssFile:\t 170000 kB\nRssShmem:\t 10000 kB\n")
        write(process / "smaps_rollup", "Rss:  300000 kB\nPss:  250000 kB\n")
        assert container.held() == 130_000 << 10
        assert container.anonymous() == 120_000 << 10


@pytest.mark.skipif(bool(cgroup.missing()), reason=cgroup.missing())
def test_a_real_group() -> None:
    """A process reads its cgroup's limit; a process that exceeds it is killed, and the cgroup counts the kill."""
    report = "import json; from segment import container; print(json.dumps(container.memory_limit()))"
    with cgroup.group(200 * MIB) as group:
        command = group.command([sys.executable, "-c", report])
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=600)
        assert json.loads(done.stdout) == 200 * MIB
        assert group.kills() == 0
        greedy = group.command([sys.executable, "-c", "bytearray(b'1') * (300 << 20)"])
        assert subprocess.run(greedy, capture_output=True, check=False, timeout=600).returncode != 0
        assert group.kills() == 1
