"""The contract of a data source, for every entry of `SOURCES`: facts, order, laziness and refusals."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.corpora import Data, Folder, Hub, lines, write

from ligo_convert.data import corpus, hf_datasets
from ligo_convert.data.corpus import SOURCES, check_data, documents, local_paths
from ligo_convert.data.records import TEXTS
from ligo_convert.errors import RecipeError
from ligo_convert.recipes.schema import DataConfig

PNG = b"\x89PNG\r\n\x1a\n"


def text_sample(folder: Path) -> Data:
    write(folder / "a.txt", lines(400))
    write(folder / "b.jsonl", "".join(f'{{"text": "record {number}"}}\n' for number in range(200)))
    return Data(text=["*.txt", "*.jsonl"])


def images_sample(folder: Path) -> Data:
    for name in ("cat", "dog"):
        write(folder / "photos" / name / "1.png", PNG)
    return Data(images="photos")


def dataset_sample(folder: Path) -> Data:
    write(folder / "table" / "train.csv", "text\n" + "".join(f"row {number} of a dataset\n" for number in range(1500)))
    return Data(dataset=Folder(path="table"))


# Source -> function that writes sample data into a folder and returns the section of the recipe that names it.
SAMPLES: dict[str, Callable[[Path], Data]] = {
    "text": text_sample,
    "hub": lambda folder: Data(hub=Hub(id="org/name")),
    "dataset": dataset_sample,
    "images": images_sample,
    "stdlib": lambda folder: Data(stdlib=True),
}

TEXT_SOURCES = [key for key, source in SOURCES.items() if source.reads == "text"]
IMAGE_SOURCES = [key for key, source in SOURCES.items() if source.reads == "images"]


@pytest.fixture(autouse=True)
def fake_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stream a dataset of 1500 rows without the Hub and without the package `datasets`."""

    def load_dataset(*arguments: Any, **options: Any) -> list[dict[str, str]]:
        return [{"text": f"row {number} of a dataset"} for number in range(1500)]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    monkeypatch.setattr(hf_datasets, "require_datasets", lambda what: None)
    monkeypatch.setattr(corpus, "require_datasets", lambda what: None)


def test_every_source_has_a_sample_here_and_a_key_in_the_recipe() -> None:
    assert SAMPLES.keys() == SOURCES.keys()
    assert set(DataConfig.alternatives) == SOURCES.keys()


@pytest.mark.parametrize("key", SOURCES)
def test_facts_name_the_files_and_their_size(tmp_path: Path, key: str) -> None:
    data = SAMPLES[key](tmp_path)
    facts = check_data(data, base=tmp_path, wants=SOURCES[key].reads)
    assert facts == check_data(data, base=tmp_path, wants=SOURCES[key].reads)
    assert facts.kind
    assert facts.nbytes == sum(file.stat().st_size for file in facts.files)


@pytest.mark.parametrize("key", TEXT_SOURCES)
def test_texts_come_in_a_seeded_order_that_no_folder_changes(tmp_path: Path, key: str) -> None:
    def first(base: Path, seed: int) -> list[str]:
        return list(itertools.islice(documents(SAMPLES[key](base), base=base, seed=seed), 200))

    texts = first(tmp_path / "here", 0)
    assert texts == first(tmp_path / "elsewhere", 0)
    assert texts != first(tmp_path / "here", 1)
    assert all(text.strip() for text in texts)


@pytest.mark.parametrize("key", IMAGE_SOURCES)
def test_images_are_refused_where_text_is_needed(tmp_path: Path, key: str) -> None:
    data = SAMPLES[key](tmp_path)
    with pytest.raises(RecipeError, match=f"data.{key}: text families need text"):
        check_data(data, base=tmp_path)
    with pytest.raises(RecipeError, match=f"data.{key}: text families need text"):
        next(documents(data, base=tmp_path, seed=0))
    with pytest.raises(RecipeError, match="holds no text"):
        SOURCES[key].documents(getattr(data, key), base=tmp_path, seed=0, records=TEXTS)


@pytest.mark.parametrize("key", TEXT_SOURCES)
def test_text_is_refused_where_images_are_needed(tmp_path: Path, key: str) -> None:
    with pytest.raises(RecipeError, match=f"data.{key}: image models need images"):
        check_data(SAMPLES[key](tmp_path), base=tmp_path, wants="images")


@pytest.mark.parametrize("key", SOURCES)
def test_local_paths_cover_the_files_of_the_recipe(tmp_path: Path, key: str) -> None:
    data = SAMPLES[key](tmp_path)
    paths = set(local_paths(data, base=tmp_path))
    for file in check_data(data, base=tmp_path, wants=SOURCES[key].reads).files:
        if file.is_relative_to(tmp_path):
            assert paths & {file, file.parent}
