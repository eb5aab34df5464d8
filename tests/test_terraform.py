"""Tests of terraform/ without a cloud: format, schema, validation rules, defaults and policies.

Terraform's own tests in terraform/tests run here with mocks and the google provider's argument schema (see
terraform/stub_provider.py in this folder). Names, nesting, types, validation rules and every grant are tested; the
responses of Google's API are not.

The tools for this, except terraform itself, are in .cache/terraform, which `make test` creates.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from segment.errors import SettingsError
from segment.formats import Format
from segment.log import JsonFormatter
from segment.resize import Fit
from segment.settings import PREFIX, Settings
from segment.values import choices

ROOT = Path(__file__).resolve().parents[1]
MODULE = ROOT / "terraform"
TOOLS = ROOT / ".cache" / "terraform" / "bin"
STUB = ROOT / "tests" / "terraform" / "stub_provider.py"
SCHEMA = ROOT / "tests" / "terraform" / "google.schema.json"

needs_terraform = pytest.mark.skipif(not shutil.which("terraform"), reason="terraform is not installed")
needs_tools = pytest.mark.skipif(not (TOOLS / "python").exists(), reason=".cache/terraform is missing: run `make test`")

Terraform = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def terraform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terraform]:
    """A function (folder, *arguments) that runs terraform in the folder with stubs of the google providers."""
    sockets = tmp_path_factory.mktemp("providers")
    with subprocess.Popen(
        [TOOLS / "python", STUB, sockets], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as provider:
        assert provider.stdout
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("TF_")},
            "TF_REATTACH_PROVIDERS": provider.stdout.readline(),
            "TF_IN_AUTOMATION": "1",
            "CHECKPOINT_DISABLE": "1",  # no check for newer versions
            "GOMAXPROCS": "1",  # a third less CPU time: threads of the garbage collector wait in loops
            "GOGC": "400",
        }

        def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                ["terraform", *arguments],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=600,
                check=False,
            )

        yield run
        provider.communicate()


@pytest.fixture(scope="session")
def initialised(terraform: Terraform, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A read-only copy of the module after `terraform init`."""
    folder = tmp_path_factory.mktemp("module") / "terraform"
    shutil.copytree(MODULE, folder, ignore=shutil.ignore_patterns(".terraform*", "*.tfstate*", "*.tfvars"))
    for root in (folder, *(folder / "examples").iterdir()):
        done = terraform(root, "init", "-backend=false", "-no-color")
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def module(initialised: Path, tmp_path: Path) -> Path:
    """A copy of the module to change."""
    return Path(shutil.copytree(initialised, tmp_path / "terraform"))


@pytest.fixture(scope="session")
def tested(terraform: Terraform, initialised: Path) -> tuple[int, list[dict[str, Any]]]:
    """The exit status of `terraform test` and its events, including states and plans."""
    done = terraform(initialised, "test", "-json", "-verbose")
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


# The unchanged module


@needs_terraform
def test_files_are_formatted() -> None:
    done = subprocess.run(
        ["terraform", "fmt", "-check", "-diff", "-recursive", MODULE],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@needs_terraform
@needs_tools
@pytest.mark.parametrize("root", [".", "examples/minimal", "examples/full"])
def test_configuration_is_valid(terraform: Terraform, initialised: Path, root: str) -> None:
    done = terraform(initialised / root, "validate", "-no-color")
    assert done.returncode == 0, done.stderr


@needs_terraform
@needs_tools
def test_terraforms_own_tests_pass(tested: tuple[int, list[dict[str, Any]]]) -> None:
    status, events = tested
    problems = [event["diagnostic"] for event in events if event["type"] == "diagnostic"]
    assert not problems
    (summary,) = (event["test_summary"] for event in events if event["type"] == "test_summary")
    assert summary["status"] == "pass"
    assert summary["passed"] > 60
    assert status == 0


def test_schema_contains_the_used_resources() -> None:
    tables = json.loads(SCHEMA.read_text())["provider_schemas"].values()
    text = "\n".join(path.read_text() for path in MODULE.glob("*.tf"))
    assert set(re.findall(r'^resource "(\w+)"', text, re.M)) == set().union(
        *(table["resource_schemas"] for table in tables)
    )
    assert set(re.findall(r'^data "(\w+)"', text, re.M)) == set().union(
        *(table["data_source_schemas"] for table in tables)
    )


def test_every_variable_and_output_is_described() -> None:
    text = (MODULE / "variables.tf").read_text() + (MODULE / "outputs.tf").read_text()
    blocks = re.findall(r'^(variable|output) "(\w+)" \{\n(.*?)^\}', text, re.M | re.S)
    assert len(blocks) > 40
    for kind, name, body in blocks:
        assert re.search(r'^  description = ".+\."$|^  description = ".+[^"]"$', body, re.M), f"{kind} {name}"
        assert kind == "output" or re.search(r"^  type +=", body, re.M), f"{kind} {name} has no type"


@needs_tools
def test_checkov_findings_are_explained(tmp_path: Path) -> None:
    """In one run for the module and the Dockerfile, since most of the time is that of the start."""
    shutil.copytree(MODULE, tmp_path / "terraform", ignore=shutil.ignore_patterns(".terraform*"))
    shutil.copy(ROOT / "Dockerfile", tmp_path)
    frameworks = ("terraform", "dockerfile")
    done = subprocess.run(
        [
            *(TOOLS / "checkov", "--framework", *frameworks, "--directory", tmp_path),
            *("--skip-path", "examples"),  # they only call the module: the same resources again
            *("--skip-download", "--output", "json"),
        ],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "LOG_LEVEL": "ERROR"},
        check=False,
    )
    reports = json.loads(done.stdout)
    assert sorted(report["check_type"] for report in reports) == sorted(frameworks)
    for report in reports:
        assert not [(found["check_id"], found["resource"]) for found in report["results"]["failed_checks"]]
        assert report["summary"]["passed"] > 0
        for skipped in report["results"]["skipped_checks"]:
            assert len(skipped["check_result"]["suppress_comment"].split()) >= 5, skipped["check_id"]
    assert done.returncode == 0


# The settings and validation rules of the module are those of the code


def containers(module: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every container of the services and jobs in a state or plan of a module and its child modules."""
    for resource in module.get("resources", []):
        (template,) = resource["values"].get("template") or [{}]
        (template,) = template.get("template") or [template]  # a job's template contains the template of its tasks
        yield from template.get("containers", [])
    for child in module.get("child_modules", []):
        yield from containers(child)


@needs_terraform
@needs_tools
def test_environment_contains_valid_settings(tested: tuple[int, list[dict[str, Any]]]) -> None:
    told: set[str] = set()
    for event in tested[1]:
        values = event.get("test_state") or event.get("test_plan", {}).get("planned_values") or {}
        for container in containers(values.get("root_module", {})):
            environment = {variable["name"]: variable["value"] for variable in container["env"]}
            settings = Settings.from_environment(environment)
            limit = container["resources"][0]["limits"]["memory"]
            assert settings.memory == int(limit.removesuffix("Mi")) << 20
            assert settings.wait_seconds <= 595
            told |= {name for name in environment if name.startswith(PREFIX)}
    named = set(re.findall(r"SEGMENT_[A-Z_]+[A-Z]", (MODULE / "services.tf").read_text()))
    assert named <= told, "a run in terraform/tests must set each of these"


def run_variables(run: str) -> dict[str, str]:
    """The variables of a run in variables.tftest.hcl."""
    text = (MODULE / "tests" / "variables.tftest.hcl").read_text()
    found = re.search(rf'^run "{run}" \{{.*?^  variables \{{\n(.*?)^  \}}', text, re.M | re.S)
    assert found
    return {name: value.strip('"') for name, value in re.findall(r"^    (\w+) += (.+)$", found[1], re.M)}


@pytest.mark.parametrize("name", ["render_factor", "min_score", "max_detections"])
def test_bounds_are_those_of_the_settings(name: str) -> None:
    for run in ("accepts_minimum_values", "accepts_maximum_values"):
        Settings.from_environment({PREFIX + name.upper(): run_variables(run)[name]})
    for run in ("refuses_values_below_the_minimum", "refuses_values_above_the_maximum"):
        with pytest.raises(SettingsError):
            Settings.from_environment({PREFIX + name.upper(): run_variables(run)[name]})


@pytest.mark.parametrize(("name", "words"), [("fit", choices(Fit)), ("output_formats", choices(Format))])
def test_choices_are_those_of_the_settings(name: str, words: tuple[str, ...]) -> None:
    text = (MODULE / "variables.tf").read_text()
    found = re.search(rf'variable "{name}" \{{.*?condition[^\n]*?(\["[^\n]*?\])', text, re.S)
    assert found
    assert sorted(json.loads(found[1])) == sorted(words)


# The filters of logs match what is logged


def log_filter(kind: str) -> list[str]:
    """The clauses, all of which must hold, of the filter in the first block of this kind, for the default name."""
    text = (MODULE / "monitoring.tf").read_text()
    found = re.search(rf"{kind}.*?filter += <<-EOT\n(.*?)\n +EOT", text, re.S)
    assert found
    given = {"${var.name}": "segment", "${var.project_id}": "my-project"}
    filled = re.sub(r"\$\{[^}]+\}", lambda part: given[part[0]], found[1])
    return [clause.strip() for clause in re.split(r"^ *AND ", filled, flags=re.M)]


def matches(clause: str, entry: dict[str, Any]) -> bool:
    """Whether a log entry satisfies a clause of a filter: FIELD="VALUE", FIELD=~"PATTERN" or severity>=NAME."""
    found = re.fullmatch(r'([\w.]+)(=~|>=|=)"?(.*?)"?', clause)
    assert found, clause
    value: Any = entry
    for key in found[1].split("."):
        value = value.get(key, {})
    if found[2] == ">=":
        return logging.getLevelNamesMapping()[value] >= logging.getLevelNamesMapping()[found[3]]
    return bool(re.search(found[3], value)) if found[2] == "=~" and value else value == found[3]


@pytest.mark.parametrize(
    ("level", "log", "alerted"),
    [
        (logging.ERROR, "run.googleapis.com%2Fstdout", True),
        (logging.WARNING, "run.googleapis.com%2Fstdout", False),
        (logging.ERROR, "run.googleapis.com%2Frequests", False),
    ],
)
def test_alert_of_failed_events_matches_the_services_own_errors(level: int, log: str, alerted: bool) -> None:
    record = logging.makeLogRecord({"levelname": logging.getLevelName(level), "msg": "a.jpg: failed: ..."})
    line = json.loads(JsonFormatter("my-project").format(record))
    entry = {
        "severity": line.pop("severity"),
        "jsonPayload": line,
        "logName": f"projects/my-project/logs/{log}",
        "resource": {"type": "cloud_run_revision", "labels": {"service_name": "segment-events"}},
    }
    clauses = log_filter("condition_matched_log")
    assert len(clauses) == 4
    assert all(matches(clause, entry) for clause in clauses) is alerted


def test_metric_of_memory_kills_matches_cloud_runs_message() -> None:
    said = (
        "Memory limit of 512 MiB exceeded with 520 MiB used. Consider increasing the memory limit, see https://cloud..."
    )
    _, clause = log_filter('"google_logging_metric" "memory_kills"')
    assert matches(clause, {"textPayload": said})
    assert not matches(clause, {"jsonPayload": {"message": said}})


# Defects that the checks must detect. Those that do not hide each other share a run of Terraform, which takes a second.


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def words(done: subprocess.CompletedProcess[str]) -> str:
    """What a run printed, on one line."""
    return " ".join((done.stdout + done.stderr).split())


@needs_terraform
@needs_tools
@pytest.mark.parametrize(
    "defects",
    [
        [
            (
                "events.tf",
                "ack_deadline_seconds  ",
                "ack_deadline_second  ",
                'argument named "ack_deadline_second" is not',
            ),
            ("events.tf", "retry_policy {", "retry {", 'Blocks of type "retry" are not expected'),
            ("events.tf", "push_endpoint =", "#", 'The argument "push_endpoint" is required'),
            ("events.tf", 'ttl = ""', "ttl = []", 'Inappropriate value for attribute "ttl"'),
            (
                "storage.tf",
                "soft_delete_policy {",
                "soft_delete_policy {}\n  soft_delete_policy {",
                "Too many soft_delete",
            ),
            (
                "monitoring.tf",
                "condition_threshold {",
                "condition_treshold {",
                'Blocks of type "condition_treshold" are',
            ),
            (
                "outputs.tf",
                "google_pubsub_subscription.dead.name",
                "google_pubsub_subscription.dead.nam",
                'no argument, nested block, or exported attribute named "nam"',
            ),
        ],
        # The checks of a resource are skipped if one on which it depends has no valid type.
        [("iam.tf", '"google_service_account" "push"', '"google_servce_account" "push"', "Invalid resource type")],
    ],
    ids=["attributes", "type"],
)
def test_validation_finds_errors(terraform: Terraform, module: Path, defects: list[tuple[str, str, str, str]]) -> None:
    for file, old, new, _ in defects:
        change(module / file, old, new)
    done = terraform(module, "validate", "-no-color")
    assert done.returncode != 0
    said = words(done)
    assert [message for *_, message in defects if message not in said] == []


GRANTS = re.findall(r'^resource "\w+_iam_member" "(\w+)"', (MODULE / "iam.tf").read_text(), re.M)
NAMED = [
    name for name in GRANTS if re.search(rf"_iam_member\.{name}\b", "".join(map(Path.read_text, MODULE.glob("*.tf"))))
]
"""Grants that other resources depend on. Terraform stops there if one is missing, before it reads the tests."""


@needs_terraform
@needs_tools
@pytest.mark.parametrize(
    "grants", [[name for name in GRANTS if name not in NAMED], *([name] for name in NAMED)], ids=",".join
)
def test_missing_grants_are_found(terraform: Terraform, module: Path, grants: list[str]) -> None:
    for grant in grants:
        text = (module / "iam.tf").read_text()
        without = re.sub(rf'^resource "\w+_iam_member" "{grant}" \{{\n.*?^\}}\n', "", text, flags=re.M | re.S)
        assert without != text
        (module / "iam.tf").write_text(without)
    done = terraform(module, "test", "-no-color", "-filter=tests/grants.tftest.hcl")
    assert done.returncode != 0
    said = words(done)
    assert [grant for grant in grants if f'{grant}" has not been declared' not in said] == []


@needs_terraform
@needs_tools
@pytest.mark.parametrize(
    "defects",
    [
        [
            (
                "iam.tf",
                "roles/storage.objectViewer",
                "roles/storage.objectAdmin",
                "can read photos but not write them.",
            ),
            (
                "iam.tf",
                "roles/storage.objectCreator",
                "roles/storage.objectUser",
                "can create results but not overwrite",
            ),
            ("iam.tf", "roles/pubsub.subscriber", "roles/pubsub.viewer", "remove undeliverable messages"),
        ],
        [
            (
                "iam.tf",
                "= google_project_service_identity.pubsub.member",
                '= "serviceAccount:x"',
                "Pub/Sub may publish dead letters.",
            ),
            ("events.tf", "= var.ack_deadline_seconds", "= 10", "deadline is not shorter"),
            (
                "events.tf",
                "google_pubsub_topic.dead.id",
                "google_pubsub_topic.photos.id",
                "becomes a dead letter",
            ),
        ],
        [
            ("variables.tf", "default     = 512\n", "default     = 256\n", "must be at least 512 on the second"),
            (
                "variables.tf",
                "default     = 120\n",
                "default     = 30\n",
                "ack_deadline_seconds must be at least",
            ),
            ("storage.tf", "${var.name}-output", "${var.name}-input", "output_bucket must not be the input"),
        ],
    ],
    ids=["roles", "members", "defaults"],
)
def test_terraforms_own_tests_find_errors(
    terraform: Terraform, module: Path, defects: list[tuple[str, str, str, str]]
) -> None:
    for file, old, new, _ in defects:
        change(module / file, old, new)
    filters = [f"-filter=tests/{test}.tftest.hcl" for test in ("grants", "events")]
    done = terraform(module, "test", "-no-color", *filters)
    assert done.returncode != 0
    said = words(done)
    assert [message for *_, message in defects if message not in said] == []


@needs_terraform
@needs_tools
def test_refusals_say_what_is_valid(terraform: Terraform, initialised: Path) -> None:
    variables = ["memory_mib=256", "ack_deadline_seconds=30", "input_bucket=photos", "output_bucket=photos"]
    arguments = [f"-var={variable}" for variable in variables]
    done = terraform(initialised, "test", "-no-color", "-filter=tests/events.tftest.hcl", *arguments)
    assert done.returncode != 0
    said = " ".join(done.stderr.split())
    assert "memory_mib must be at least 512 on the second generation" in said
    assert "ack_deadline_seconds must be at least timeout_seconds" in said
    assert "output_bucket must not be the input bucket" in said


@needs_terraform
@needs_tools
@pytest.mark.slow
def test_every_validation_rule_is_tested(terraform: Terraform, module: Path) -> None:
    """terraform/tests/variables.tftest.hcl fails if any single `validation` block is removed."""
    path = module / "variables.tf"
    whole = path.read_text()
    rules = list(re.finditer(r"^  validation \{\n.*?^  \}\n", whole, re.M | re.S))
    assert len(rules) > 40
    for rule in rules:
        path.write_text(whole[: rule.start()] + whole[rule.end() :])
        done = terraform(module, "test", "-no-color", "-filter=tests/variables.tftest.hcl")
        assert done.returncode != 0, rule[0]
