"""Write the curves of fits, trainings and comparisons for the viewers that people use: TensorBoard, Weights & Biases.

Input: measurements of a training, step by step. Output: files in a folder that the viewer reads. Nothing is sent anywhere.

`LOGGERS` is the table to extend.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ligo_convert.errors import MachineError, MissingExtra, RecipeError, brief
from ligo_convert.progress import MetricLogger, Progress


class TensorBoardLogger:
    """Event files for TensorBoard, one folder per training.

    Args:
        folder: where to write; `tensorboard --logdir FOLDER` shows it.
    """

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder, self._open = folder, SummaryWriter
        self._writers: dict[str, Any] = {}

    def write(self, run: str, step: int, values: Mapping[str, float]) -> None:
        if run not in self._writers:
            # A resumed run repeats its last steps. TensorBoard then drops what came from here on before.
            self._writers[run] = self._open(str(self._folder / _file_name(run)), purge_step=step)
        for name, value in values.items():
            self._writers[run].add_scalar(name, value, step)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


class WandbLogger:
    """Offline runs for Weights & Biases, one per training.

    Args:
        folder: where to write; `wandb sync FOLDER/wandb/offline-run-*` uploads them, if their owner wants that.
    """

    def __init__(self, folder: Path) -> None:
        import wandb

        self._folder, self._wandb = folder, wandb
        self._runs: dict[str, Any] = {}

    def write(self, run: str, step: int, values: Mapping[str, float]) -> None:
        if run not in self._runs:
            self._runs[run] = self._wandb.init(
                project="ligo-convert",
                name=run,
                dir=str(self._folder),
                mode="offline",
                reinit="create_new",
                settings=self._wandb.Settings(**_QUIET),
            )
        self._runs[run].log(dict(values), step=step)

    def close(self) -> None:
        for run in self._runs.values():
            run.finish()
        # `finish` may return before the last bytes are written; this waits for wandb's process.
        if self._runs:
            self._wandb.teardown()


# Only measurements are recorded: no console, code, repository, host name, hardware or command line.
_QUIET: Mapping[str, Any] = {
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "disable_job_creation": True,
    "host": "-",
    "program": "ligo-convert",
    "save_code": False,
    "silent": True,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}

# Name, which is also that of the package and of the extra -> how to open it in a folder.
LOGGERS: Mapping[str, Callable[[Path], MetricLogger]] = {"tensorboard": TensorBoardLogger, "wandb": WandbLogger}


def parse_logger(text: str) -> tuple[str, Path]:
    """Parse NAME=DIR.

    Raises:
        RecipeError: another form, or no logger of this name.
        MissingExtra: its package is not installed.
    """
    name, equals, folder = text.partition("=")
    if not equals or not folder or name not in LOGGERS:
        raise RecipeError(
            "no such logger" if equals and folder else "expected NAME=DIR",
            where=f"--logger {brief(text)}",
            expected=", ".join(f"{known}=DIR" for known in LOGGERS),
        )
    if importlib.util.find_spec(name) is None:
        raise MissingExtra(f"--logger {name} needs the package {name}", extra=name)
    return name, Path(folder)


class _Guarded:
    """A logger that is left out from its first error on: the training is worth more than its curves."""

    def __init__(self, name: str, logger: MetricLogger, progress: Progress) -> None:
        self._name, self._logger, self._progress = name, logger, progress
        self._works = True

    def write(self, run: str, step: int, values: Mapping[str, float]) -> None:
        self._try(lambda: self._logger.write(run, step, values))

    def close(self) -> None:
        self._try(self._logger.close)

    def _try(self, call: Callable[[], None]) -> None:
        if not self._works:
            return
        try:
            call()
        except Exception as error:  # noqa: BLE001  a viewer's library may raise anything
            self._works = False
            self._progress.warn(
                f"--logger {self._name} failed and is left out from here on: {type(error).__name__}: {str(error)[:200]}"
            )


@contextmanager
def logging_to(wanted: Mapping[str, Path], progress: Progress) -> Iterator[None]:
    """Give the measurements that `progress` receives to loggers while the block runs.

    Args:
        wanted: key of `LOGGERS` -> folder.
        progress: receives the measurements, and a warning if a logger fails.

    Raises:
        MachineError: a folder that cannot be made.
    """
    for folder in wanted.values():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MachineError(f"--logger: {error.strerror}", where=folder, hint="name another folder") from None
    opened = [_Guarded(name, LOGGERS[name](folder), progress) for name, folder in wanted.items()]
    progress.loggers = opened
    try:
        yield
    finally:
        progress.loggers = ()
        for logger in opened:
            logger.close()


def _file_name(run: str) -> str:
    """Return a name for a folder: readable, and different for different runs."""
    plain = "".join(letter if letter.isalnum() or letter in "-_.=+" else "_" for letter in run).strip("._")[:80]
    return plain if plain == run else f"{plain}-{hashlib.sha256(run.encode()).hexdigest()[:6]}"
