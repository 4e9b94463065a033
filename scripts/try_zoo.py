"""Convert and publish the small zoo of recipes/zoo/, to a Hub on this machine's loopback interface, and load what is there by its name.

    python scripts/try_zoo.py
    python scripts/try_zoo.py --engine ray

What comes in: nothing; the sources are trained. What goes out: the batch's own table and summary, then a line for every
repository: what the real library, asked for it by name, has loaded. The Hub forgets everything when this ends; outputs stay in
the folder it names. The exit code is that of the batch, which has one entry that must fail (3), or 1 where anything else is not
as it should be.
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
HUB, MANIFEST = ROOT / "tests" / "loopback.py", ROOT / "recipes" / "zoo" / "zoo.yaml"
TOKEN, ACCOUNT = "hf_only_for_this_machine", "me"
POISONED, POISONED_CODE = "poisoned", 3
LOAD = """
import json, sys
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM
for name in sys.argv[1:]:
    of_masks = "bert" in name
    model, info = (AutoModelForMaskedLM if of_masks else AutoModelForCausalLM).from_pretrained(name, output_loading_info=True)
    print(json.dumps({"repo": name, "class": type(model).__name__, "parameters": model.num_parameters(),
                      "left over": sum(map(len, info.values()))}))
"""


@click.command()
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True)
@click.option("--jobs", default=2, show_default=True)
@click.option("--keep", type=click.Path(path_type=Path), help="Where the outputs are made; default: a new folder.")
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
            told = json.loads(
                subprocess.run(
                    [*command, "--json"],
                    env=environment,
                    cwd=folder,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    check=False,
                ).stdout
            )
            names = [entry["published"]["repo"] for entry in told["entries"].values() if entry.get("published")]
            click.echo()
            subprocess.run(
                [sys.executable, "-c", LOAD, *names],
                env={**environment, "HF_HOME": str(folder / "other-home")},
                stderr=subprocess.DEVNULL,
                check=True,
            )
        finally:
            hub.terminate()
    sys.exit(code if _as_it_should_be(told, code) else 1)


def _as_it_should_be(told: dict[str, Any], code: int) -> bool:
    states = {name: entry["state"] for name, entry in told["entries"].items()}
    return code == POISONED_CODE and states.pop(POISONED) == "failed" and set(states.values()) == {"done"}


if __name__ == "__main__":
    main()
