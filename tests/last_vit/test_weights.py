"""The weights records are complete, honest about what is unknown, and fit the functions that read them."""

import dataclasses

import pytest

from last_vit.token_pool import TokenPool
from last_vit.weights import WEIGHTS, WeightsRecord

RECORDS = list(WEIGHTS.values())


def by_name(record: WeightsRecord) -> str:
    return record.file


def test_the_three_released_files_are_there() -> None:
    assert {record.file for record in RECORDS} == {"ViT_190k.pth", "dino0080.pth", "openai_b_16.pt"}


@pytest.mark.parametrize("record", RECORDS, ids=by_name)
def test_record_is_frozen_and_complete(record: WeightsRecord) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.file = "other"
    assert record.source.startswith("https://github.com/ChengShiest/LAST-ViT/releases/download/")
    assert record.source.endswith("/" + record.file)
    assert record.caveats
    assert all(caveat.endswith(".") for caveat in record.caveats)


@pytest.mark.parametrize("record", RECORDS, ids=by_name)
def test_nothing_is_invented(record: WeightsRecord) -> None:
    fields = {field.name for field in dataclasses.fields(record)}
    assert set(record.inferred) <= fields
    unknown = {name for name in fields if getattr(record, name) is None}
    assert not unknown & set(record.inferred), "unknown and deduced exclude each other"


@pytest.mark.parametrize("record", RECORDS, ids=by_name)
def test_pooling_holds_the_arguments_of_the_pool(record: WeightsRecord) -> None:
    known = record.pooling if record.pooling["top_k"] is not None else {**record.pooling, "top_k": 1}
    pool = TokenPool(known["pool"], known["top_k"], known["sigma"], known["variant"])
    assert {"pool": pool.kind, "top_k": pool.top_k, "sigma": pool.sigma, "variant": pool.variant} == known


def test_only_the_published_accuracies() -> None:
    published = {record.file: record.published_metrics for record in RECORDS}
    assert published == {
        "ViT_190k.pth": {
            "imagenet1k_val_top_k_1": {"acc1": 67.4, "acc5": 87.6},
            "imagenet1k_val_top_k_7": {"acc1": 67.6, "acc5": 87.8},
        },
        "dino0080.pth": None,
        "openai_b_16.pt": None,
    }
