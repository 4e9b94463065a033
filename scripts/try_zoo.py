"""Convert and publish the small zoo of recipes/zoo/ to a Hub on this machine's loopback interface, then load every repository by name.

    python scripts/try_zoo.py
    python scripts/try_zoo.py --engine ray

Input: none; the sources are trained. Output: the table and summary of the batch, then one line per repository with what was loaded.
The Hub loses everything when the script ends; outputs remain in the folder that is printed. The exit code is the batch's, which has one
entry that must fail (3), or 1 for any other problem: another entry failed, a repository was not loaded, or keys were left over.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parent.parent
HUB, MANIFEST = ROOT / "tests" / "support" / "loopback" / "server.py", ROOT / "recipes" / "zoo" / "zoo.yaml"
TOKEN, ACCOUNT = "hf_only_for_this_machine", "me"
POISONED, POISONED_CODE = "poisoned", 3
LOAD = """
import json, sys
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM
for name in sys.argv[1:]:
    of_masks = "bert" in name
    model, info = (AutoModelForMaskedLM if of_masks else AutoModelForCausalLM).from_pretrained(
        name, output_loading_info=True, trust_remote_code=False, use_safetensors=True)
    print(json.dumps({"repo": name, "class": type(model).__name__, "parameters": model.num_parameters(),
                      "left over": sum(map(len, info.values()))}), flush=True)
"""


@click.command()
@click.option("--engine", default="local", show_default=True)
@click.option("--jobs", default=2, show_default=True)
@click.option("--keep", type=click.Path(path_type=Path), help="Folder for the outputs. Default: a new one.")
def main(engine: str, jobs: int, keep: Path | None) -> None:
    """Run the batch, then load every repository."""
    folder = keep if keep is not None else Path(tempfile.mkdtemp(prefix="ligo-zoo-"))
    folder.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen(
        [sys.executable, str(HUB), "--token", TOKEN, "--account", ACCOUNT], stdout=subprocess.PIPE, text=True
    ) as hub:
        assert hub.stdout is not None
        endpoint = hub.stdout.readline().strip().partition("=")[2]
        environment = {
            **os.environ,
            "HF_ENDPOINT": endpoint,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(folder / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
        }
        try:
            command = [sys.executable, "-m", "ligo_convert", "batch", str(MANIFEST), "--engine", engine]
            command += ["--jobs", str(jobs)] if engine == "local" else []
            click.echo(f"outputs in {folder}", err=True)
            code = subprocess.run(command, env=environment, cwd=folder, check=False).returncode
            report = json.loads(
                subprocess.run(
                    [*command, "--json"],
                    env=environment,
                    cwd=folder,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    check=False,
                ).stdout
            )
            names = [entry["published"]["repo"] for entry in report["entries"].values() if entry.get("published")]
            click.echo()
            lines = subprocess.run(
                [sys.executable, "-c", LOAD, *names],
                env={**environment, "HF_HOME": str(folder / "other-home")},
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                check=False,
            ).stdout
            click.echo(lines)
        finally:
            hub.terminate()
    problems = faults(report, code, [json.loads(line) for line in lines.splitlines()])
    for problem in problems:
        click.echo(f"problem: {problem}", err=True)
    sys.exit(1 if problems else code)


def faults(report: dict[str, Any], code: int, loaded: list[dict[str, Any]]) -> list[str]:
    """Return what is wrong in the reports of the batch and of the real library."""
    problems = [] if code == POISONED_CODE else [f"the batch ended with {code}"]
    states = {name: entry["state"] for name, entry in report["entries"].items()}
    wanted = {name: "failed" if name == POISONED else "done" for name in {*states, POISONED}}
    problems += [f"{name} is {states.get(name)}" for name in wanted if states.get(name) != wanted[name]]
    left = {line["repo"]: line["left over"] for line in loaded}
    repositories = [f"{ACCOUNT}/{name}" for name in states if name != POISONED]
    problems += [f"{repo} was not loaded" for repo in repositories if repo not in left]
    problems += [f"{repo} has {count} keys left over" for repo, count in left.items() if count]
    return problems if repositories else [*problems, "nothing was published"]


if __name__ == "__main__":
    main()
