"""Laws of provenance: others read it, every changed byte shows, nothing private is in it."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import records
from support.records import OUTPUTS, RECORD, digest

from ligo_convert.errors import LigoError, VerificationError
from ligo_convert.outputs import privacy as private
from ligo_convert.outputs.checksums import check_sums, read_sums, sums
from ligo_convert.outputs.privacy import check_nothing_private, public_name
from ligo_convert.outputs.provenance import (
    Record,
    check_subjects,
    metrics_of,
    package_url,
    read_statement,
    statement,
    statement_bytes,
)

GOLDEN = Path(__file__).parent / "golden" / "provenance.json"
DOCUMENT = Path(__file__).parents[2] / "docs" / "reference" / "provenance-format.md"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An account of our own: what the tests find does not depend on whose machine this is."""
    for variable in (*(name for name in os.environ if private._SECRET.search(name)), "TMPDIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", "/home/canary-home")
    for variable in ("USER", "LOGNAME", "USERNAME", "SUDO_USER"):
        monkeypatch.setenv(variable, "canaryuser")
    monkeypatch.setattr("platform.node", lambda: "canaryhost.lan")
    (tmp_path / "canary-cwd").mkdir()
    monkeypatch.chdir(tmp_path / "canary-cwd")


# --- the statement ----------------------------------------------------------------------------------------------------


def test_the_statement_of_a_record_is_the_one_we_looked_at() -> None:
    data = statement_bytes(RECORD, OUTPUTS)
    if os.environ.get("LIGO_UPDATE_GOLDENS"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_bytes(data)
    assert data == GOLDEN.read_bytes()


def test_a_statement_of_this_version_can_be_read() -> None:
    found = read_statement(GOLDEN.read_bytes(), label="provenance.json")
    assert found["predicate"]["buildDefinition"]["internalParameters"]["key"] == RECORD.key
    assert metrics_of(found) == json.loads(json.dumps(RECORD.metrics))


def test_it_is_an_intoto_statement_with_a_slsa_predicate() -> None:
    found = statement(RECORD, OUTPUTS)
    assert set(found) == {"_type", "subject", "predicateType", "predicate"}
    assert found["_type"] == "https://in-toto.io/Statement/v1"
    assert found["predicateType"] == "https://slsa.dev/provenance/v1"
    assert set(found["predicate"]) == {"buildDefinition", "runDetails"}
    build, run = found["predicate"]["buildDefinition"], found["predicate"]["runDetails"]
    assert set(build) == {"buildType", "externalParameters", "internalParameters", "resolvedDependencies"}
    assert set(run) == {"builder", "metadata", "byproducts"}
    assert set(run["builder"]) == {"id", "version"}
    assert set(run["metadata"]) == {"invocationId", "startedOn", "finishedOn"}
    fields = {"name", "uri", "digest", "content", "downloadLocation", "mediaType", "annotations"}
    for resource in (*found["subject"], *build["resolvedDependencies"], *run["byproducts"]):
        assert set(resource) <= fields
        # in-toto: a resource has at least one of these.
        assert {"uri", "digest", "content"} & set(resource)
    for resource in found["subject"]:
        assert set(resource) == {"name", "digest"}


def test_every_output_is_a_subject_but_the_two_that_cannot_be() -> None:
    outputs = {**OUTPUTS, "ligo/provenance.json": digest("p"), "ligo/SHA256SUMS": digest("s")}
    stated = {item["name"]: item["digest"]["sha256"] for item in statement(RECORD, outputs)["subject"]}
    assert stated == OUTPUTS


def test_the_same_record_gives_the_same_bytes_in_any_order() -> None:
    shuffled = replace(
        RECORD,
        source={**RECORD.source, "files": dict(reversed(list(RECORD.source["files"].items())))},
        versions=dict(reversed(list(RECORD.versions.items()))),
        source_config=dict(reversed(list(RECORD.source_config.items()))),
    )
    assert statement_bytes(shuffled, dict(reversed(OUTPUTS.items()))) == statement_bytes(RECORD, OUTPUTS)
    assert statement_bytes(RECORD, OUTPUTS).isascii()


def test_files_of_the_hub_have_a_package_url_and_local_ones_a_name() -> None:
    def sources(record: Record) -> list[dict[str, Any]]:
        dependencies = statement(record, OUTPUTS)["predicate"]["buildDefinition"]["resolvedDependencies"]
        return [item for item in dependencies if item["annotations"]["role"] == "source"]

    of_hub = sources(RECORD)
    assert {item["name"]: item["digest"]["sha256"] for item in of_hub} == RECORD.source["files"]
    assert of_hub[0]["uri"] == f"pkg:huggingface/openai-community/gpt2@{records.COMMIT}#config.json"
    assert of_hub[0]["annotations"]["revision"] == records.COMMIT
    for item in sources(records.local(RECORD)):
        assert "uri" not in item
        assert item["annotations"] == {"role": "source", "model": "gpt2-tiny", "license": "mit"}
    trained = records.with_source(RECORD, label="ours", revision=None, pretrained_here=True, license=None)
    assert sources(trained)[0]["annotations"] == {"role": "source", "model": "ours", "trainedHere": True}


def test_a_package_url_escapes_what_is_not_a_name() -> None:
    assert package_url("gpt2", "abc", "a b#c.json") == "pkg:huggingface/gpt2@abc#a%20b%23c.json"


def test_without_data_there_is_no_data_dependency() -> None:
    found = statement(records.unfitted(), OUTPUTS)["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert {item["annotations"]["role"] for item in found} == {"source"}


def test_figures_that_are_no_numbers_go_as_their_names_and_come_back() -> None:
    broken = {**records.METRICS["preservation"], "max_logit_difference": float("nan"), "loss_difference": float("inf")}
    data = statement_bytes(records.with_metrics(RECORD, preservation=broken), OUTPUTS)
    assert b'"max_logit_difference": "NaN"' in data
    found = metrics_of(read_statement(data, label="p"))["preservation"]
    assert math.isnan(found["max_logit_difference"])
    assert found["loss_difference"] == math.inf


def test_only_plain_values_are_recorded() -> None:
    with pytest.raises(LigoError, match="plain values only, not PosixPath"):
        statement_bytes(records.with_metrics(RECORD, fit=Path("/x")), OUTPUTS)


# --- reading ----------------------------------------------------------------------------------------------------------

BROKEN: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "type": (lambda s: s.update(_type="other"), "not a provenance statement of ligo-convert"),
    "predicate type": (lambda s: s.update(predicateType="https://slsa.dev/provenance/v0.2"), "predicateType"),
    "build type": (lambda s: s["predicate"]["buildDefinition"].update(buildType="urn:other"), "buildType"),
    "no predicate": (lambda s: s.pop("predicate"), "lacks a value"),
    "predicate is a list": (lambda s: s.update(predicate=[]), "lacks a value"),
    "no key": (lambda s: s["predicate"]["buildDefinition"]["internalParameters"].pop("key"), "internalParameters.key"),
    "short key": (
        lambda s: s["predicate"]["buildDefinition"]["internalParameters"].update(key="ab"),
        "the key is not a SHA-256 digest",
    ),
    "flag": (
        lambda s: s["predicate"]["buildDefinition"]["internalParameters"].update(nonfiniteAllowed=1),
        "nonfiniteAllowed",
    ),
    "subject": (lambda s: s.update(subject={}), "subject"),
    "subject digest": (
        lambda s: s["subject"][2]["digest"].update(sha256="00"),
        r"subject\[2\]: the digest is not a SHA-256 digest",
    ),
    "subject name": (lambda s: s["subject"][1].pop("name"), r"subject\[1\]: name"),
    "dependency": (
        lambda s: s["predicate"]["buildDefinition"]["resolvedDependencies"].append(None),
        r"resolvedDependencies\[5\]: name",
    ),
    "annotations": (
        lambda s: s["predicate"]["buildDefinition"]["resolvedDependencies"][0].update(annotations=[]),
        r"resolvedDependencies\[0\]: annotations",
    ),
    "byproducts": (lambda s: s["predicate"]["runDetails"].update(byproducts=[{}]), r"byproducts\[0\]: name"),
    "figures": (lambda s: s["predicate"]["runDetails"]["byproducts"][0].pop("annotations"), "annotations"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_statement_that_is_not_ours_is_refused(name: str) -> None:
    breaking, message = BROKEN[name]
    found = copy.deepcopy(statement(RECORD, OUTPUTS))
    breaking(found)
    with pytest.raises(VerificationError, match=message) as caught:
        read_statement(json.dumps(found).encode(), label="provenance.json")
    assert caught.value.exit_code == 7
    assert "provenance.json" in caught.value.where


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"_type": 1}',
        b'{"a": 1, "a": 2}',
        b"NaN",
        b"[" * 100_000,
        b"PK\x03\x04",
        b'{"predicate": null}',
    ],
)
def test_what_is_no_statement_at_all_is_refused(data: bytes) -> None:
    with pytest.raises(VerificationError, match=r"provenance\.json.*(not a provenance statement|lacks a value)"):
        read_statement(data, label="provenance.json")


# --- SHA256SUMS -------------------------------------------------------------------------------------------------------


@pytest.fixture
def output(tmp_path: Path) -> Path:
    root = tmp_path / "out"
    for name in OUTPUTS:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * 100)
    files = {name: hashlib.sha256(name.encode() * 100).hexdigest() for name in OUTPUTS}
    (root / "ligo" / "provenance.json").write_bytes(statement_bytes(RECORD, files))
    files["ligo/provenance.json"] = hashlib.sha256((root / "ligo" / "provenance.json").read_bytes()).hexdigest()
    (root / "ligo" / "SHA256SUMS").write_bytes(sums(files))
    return root


def test_a_whole_output_passes_and_every_byte_is_counted(output: Path) -> None:
    seen: list[int] = []
    found = check_sums(output, on_bytes=seen.append)
    assert set(found) == {*OUTPUTS, "ligo/provenance.json"}
    assert sum(seen) == sum((output / name).stat().st_size for name in found)
    check_subjects(read_statement((output / "ligo/provenance.json").read_bytes(), label="p"), found)


def test_moving_an_output_keeps_its_sums(output: Path, tmp_path: Path) -> None:
    found = check_sums(output)
    shutil.copytree(output, tmp_path / "copy" / "deeper")
    assert check_sums(tmp_path / "copy" / "deeper") == found


@pytest.mark.skipif(
    shutil.which("sha256sum") is None, reason="the command sha256sum, which is to agree, is not installed"
)
def test_coreutils_accepts_it(output: Path) -> None:
    command = ["sha256sum", "--check", "--strict", "ligo/SHA256SUMS"]
    done = subprocess.run(command, cwd=output, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": OK") == len(OUTPUTS) + 1
    (output / "config.json").write_bytes(b"other")
    assert subprocess.run(command, cwd=output, capture_output=True).returncode != 0


def test_every_changed_file_is_found(output: Path) -> None:
    for name in (*OUTPUTS, "ligo/provenance.json"):
        before = (output / name).read_bytes()
        (output / name).write_bytes(bytes([before[0] ^ 1]) + before[1:])
        with pytest.raises(VerificationError, match="the file changed since it was written") as caught:
            check_sums(output)
        assert caught.value.where == str(output / name)
        assert caught.value.expected == hashlib.sha256(before).hexdigest()
        assert caught.value.found == hashlib.sha256((output / name).read_bytes()).hexdigest()
        (output / name).write_bytes(before)
    check_sums(output)


def test_a_missing_file_is_named(output: Path) -> None:
    (output / "config.json").unlink()
    (output / "ligo/fit.png").unlink()
    with pytest.raises(VerificationError, match=r"config\.json: listed in ligo/SHA256SUMS, but missing") as caught:
        check_sums(output)
    assert "and 1 more" in str(caught.value)


@pytest.mark.parametrize(
    "name", ["extra.bin", ".hidden", "ligo/more.txt", "deep/er/file", ".cache/other", "pytorch_model.bin"]
)
def test_an_extra_file_is_named(output: Path, name: str) -> None:
    (output / name).parent.mkdir(parents=True, exist_ok=True)
    (output / name).write_bytes(b"x")
    with pytest.raises(VerificationError, match="the file is not listed in ligo/SHA256SUMS") as caught:
        check_sums(output)
    assert caught.value.where == str(output / name)


def test_what_the_hub_leaves_in_a_download_is_passed_over(output: Path) -> None:
    (output / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    (output / ".cache/huggingface/download").mkdir(parents=True)
    (output / ".cache/huggingface/download/config.json.metadata").write_text("x")
    check_sums(output)


@pytest.mark.parametrize("target", ["config.json", "/etc/passwd", "nowhere", "ligo"])
def test_links_are_refused_whatever_they_point_to(output: Path, target: str) -> None:
    for name in ("link", "ligo/link", ".gitattributes"):
        (output / name).symlink_to(target)
        with pytest.raises(VerificationError, match="a symbolic link"):
            check_sums(output)
        (output / name).unlink()
    moved = output.parent / "elsewhere"
    (output / "README.md").rename(moved)
    (output / "README.md").symlink_to(moved)
    with pytest.raises(VerificationError, match=r"README\.md: a symbolic link"):
        check_sums(output)


def test_a_pipe_is_refused_without_waiting(output: Path) -> None:
    (output / "config.json").unlink()
    os.mkfifo(output / "config.json")
    with pytest.raises(VerificationError, match=r"config\.json: neither a file nor a directory"):
        check_sums(output)


def test_without_sums_nothing_is_vouched_for(output: Path) -> None:
    (output / "ligo/SHA256SUMS").unlink()
    with pytest.raises(VerificationError, match="SHA256SUMS is missing"):
        check_sums(output)


HEX = "0" * 64


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"\xff\n",
        f"{HEX}  a".encode(),
        f"{HEX} a\n".encode(),
        f"{HEX} *a\n".encode(),
        f"{HEX}   a\n".encode(),
        f"{HEX}  a \n".encode(),
        f"{HEX}  a\r\n".encode(),
        f"\\{HEX}  a\\nb\n".encode(),
        f"{'A' * 64}  a\n".encode(),
        f"{HEX[1:]}  a\n".encode(),
        f"{HEX}  ../a\n".encode(),
        f"{HEX}  /a\n".encode(),
        f"{HEX}  a/../b\n".encode(),
        f"{HEX}  ./a\n".encode(),
        f"{HEX}  a//b\n".encode(),
        f"{HEX}  a/\n".encode(),
        f"{HEX}  .\n".encode(),
        f"{HEX}  a\\b\n".encode(),
        f"{HEX}  a\x1b[2J\n".encode(),
        f"{HEX}  ligo/SHA256SUMS\n".encode(),
        f"{HEX}  b\n{HEX}  a\n".encode(),
        f"{HEX}  a\n{HEX}  a\n".encode(),
        f"{HEX}  a\n\n{HEX}  b\n".encode(),
        f"# a comment\n{HEX}  a\n".encode(),
    ],
)
def test_other_lines_than_ours_are_refused(data: bytes) -> None:
    with pytest.raises(VerificationError) as caught:
        read_sums(data)
    assert caught.value.where.startswith("ligo/SHA256SUMS")
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("name", ["a\nb", "../a", "/a", "a\\b", "", " a", "ligo/SHA256SUMS", "a\x00b"])
def test_names_that_could_not_be_read_back_are_not_written(name: str) -> None:
    with pytest.raises(LigoError, match="not a file name and its SHA-256"):
        sums({name: HEX})


@given(
    st.dictionaries(
        st.text(st.sampled_from("ab.-_ \u00e9/\\\n"), min_size=1, max_size=8),
        st.sampled_from([HEX, "f" * 64]),
        min_size=1,
    )
)
def test_what_is_written_is_read_back(files: dict[str, str]) -> None:
    try:
        data = sums(files)
    except LigoError:
        return
    assert read_sums(data) == files


def test_a_statement_about_other_files_is_found(output: Path) -> None:
    found = check_sums(output)
    stated = read_statement((output / "ligo/provenance.json").read_bytes(), label="p")
    for changed in (
        {**found, "config.json": HEX},
        {**found, "new": HEX},
        {k: v for k, v in found.items() if k != "config.json"},
    ):
        with pytest.raises(VerificationError, match="the provenance describes other files"):
            check_subjects(stated, changed)
    stated["subject"].append(stated["subject"][0])
    with pytest.raises(VerificationError, match="listed twice"):
        check_subjects(stated, found)


# --- nothing private --------------------------------------------------------------------------------------------------


def with_reason(text: str) -> Record:
    return records.with_metrics(RECORD, preservation={**records.METRICS["preservation"], "reasons": [text]})


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("/home/canary-home", "the home directory"),
        ("see file:///home/canary-home/models/x", "the home directory"),
        ("by canaryuser", "the account's name"),
        ("canaryuser@somewhere", "the account's name"),
        ("/data/canaryuser/gpt2", "the account's name"),
        ("at canaryhost", "the machine's name"),
        ("canaryhost.lan:8080", "the machine's name"),
        ("hf_" + "aB3" * 12, "a Hub token"),
        ("xcanary-secret-valuex", "a secret of the environment"),
        ("p\u00e4ssword-canary", "a secret of the environment"),
    ],
)
def test_canaries_stop_the_statement(text: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "canary-secret-value")
    monkeypatch.setenv("DB_PASSWORD", "p\u00e4ssword-canary")
    with pytest.raises(LigoError, match=f"{kind} would appear in a file that is meant to be shared") as caught:
        statement_bytes(with_reason(text), OUTPUTS)
    assert caught.value.exit_code == 70
    assert "canary" not in str(caught.value)
    assert "aB3" not in str(caught.value)


def test_the_working_and_the_temporary_directory_stop_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LigoError, match="the working directory"):
        statement_bytes(with_reason(f"in {Path.cwd()}/models"), OUTPUTS)
    monkeypatch.setenv("TMPDIR", "/scratch/canary")
    with pytest.raises(LigoError, match="the temporary directory"):
        statement_bytes(with_reason("/scratch/canary/x"), OUTPUTS)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "canary-cwd")
    monkeypatch.setenv("HOME", str(link))
    with pytest.raises(LigoError, match="directory would appear"):
        statement_bytes(with_reason(str(tmp_path / "canary-cwd" / "file")), OUTPUTS)


@pytest.mark.parametrize(
    "text", ["/home/canary-homes", "x/home/canary-home", "canaryusers", "mycanaryuser", "/home", "hf_short", "/"]
)
def test_what_only_resembles_something_private_passes(text: str) -> None:
    statement_bytes(with_reason(text), OUTPUTS)


def test_a_secret_in_any_part_of_a_record_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "canary-secret-value")
    secret = "canary-secret-value"
    for record in (
        replace(RECORD, recipe={**records.RECIPE, "x": secret}),
        replace(RECORD, target_config={**records.TARGET_CONFIG, "x": secret}),
        replace(RECORD, versions={**RECORD.versions, "x": secret}),
        replace(RECORD, drawn=[secret]),
        records.with_source(RECORD, license=secret),
        replace(RECORD, operator={**RECORD.operator, "starts": [secret]}),
    ):
        with pytest.raises(LigoError, match="a secret of the environment"):
            statement_bytes(record, OUTPUTS)


def test_markdown_and_json_do_not_hide_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/can_ary")
    for text in (r"/home/can\_ary/x", "/home/can&#95;ary", r"\u002fhome\u002fcan_ary"):
        with pytest.raises(LigoError, match="the home directory"):
            check_nothing_private(text, where="README.md")


def test_public_names_are_no_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "openai-community")
    statement_bytes(RECORD, OUTPUTS)
    monkeypatch.setenv("USER", "Salesforce")
    statement_bytes(RECORD, OUTPUTS)
    with pytest.raises(LigoError, match="the account's name"):
        check_nothing_private("Salesforce", where="x")
    check_nothing_private("Salesforce", where="x", public=["Salesforce/wikitext"])


@pytest.mark.parametrize("name", ["root", "user", "ubuntu", "lemon", "bob", "train", "Model"])
def test_names_that_name_nobody_are_no_finding(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("USER", "LOGNAME", "USERNAME", "SUDO_USER"):
        monkeypatch.setenv(variable, name)
    monkeypatch.setattr("platform.node", lambda: "localhost")
    check_nothing_private(f"{name} lemon root train localhost", where="x")


def test_an_account_without_a_name_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr("getpass.getuser", nobody)
    monkeypatch.setenv("HOME", "/")
    monkeypatch.setattr("platform.node", lambda: "")
    statement_bytes(RECORD, OUTPUTS)


def test_a_directory_named_after_its_owner_is_not_told() -> None:
    record = records.local(RECORD, label="canaryuser-gpt2")
    assert b"canary" not in statement_bytes(record, OUTPUTS)
    assert b"a local checkpoint" in statement_bytes(record, OUTPUTS)
    assert public_name("gpt2-tiny", of_hub=False) == "gpt2-tiny"
    assert public_name("canaryuser/gpt2", of_hub=True) == "canaryuser/gpt2"


def test_keys_that_a_library_writes_for_itself_are_left_out() -> None:
    record = replace(RECORD, source_config={**records.SOURCE_CONFIG, "_name_or_path": "/home/canary-home/x"})
    assert b"name_or_path" not in statement_bytes(record, OUTPUTS)


# --- the document -----------------------------------------------------------------------------------------------------


def test_the_example_in_the_document_is_the_golden_one() -> None:
    text = DOCUMENT.read_text()
    example = text.split("```json\n", 1)[1].split("```", 1)[0]
    assert json.loads(example) == json.loads(GOLDEN.read_text())


def test_every_field_is_in_the_document() -> None:
    text = DOCUMENT.read_text()
    found = statement(RECORD, OUTPUTS)
    build, run = found["predicate"]["buildDefinition"], found["predicate"]["runDetails"]
    keys = {
        *build["internalParameters"],
        *build["externalParameters"],
        *records.METRICS,
        *records.METRICS["preservation"],
    }
    keys |= {key for item in build["resolvedDependencies"] for key in item["annotations"]}
    keys |= {key for part in ("fit", "verification") for key in records.METRICS[part]}
    keys |= {item["uri"] for item in run["byproducts"]} | {build["buildType"], run["builder"]["id"], "trainedHere"}
    assert not sorted(key for key in keys if f"`{key}`" not in text)
