"""The weights records are complete, honest about what is unknown, and fit the functions that read them."""

import dataclasses

import pytest

from last_vit.token_pool import TokenPool
from last_vit.weights import WEIGHTS

IN1K = {
    "imagenet1k_val_top_k_1": {"acc1": 67.4, "acc5": 87.6},
    "imagenet1k_val_top_k_7": {"acc1": 67.6, "acc5": 87.8},
}
PUBLISHED = {"ViT_190k.pth": IN1K, "dino0080.pth": None, "openai_b_16.pt": None}


def test_the_released_files_with_their_published_accuracies():
    assert {record.file: record.published_metrics for record in WEIGHTS.values()} == PUBLISHED


@pytest.mark.parametrize("name", WEIGHTS)
def test_record_is_complete_and_invents_nothing(name):
    record = WEIGHTS[name]
    assert record.source.startswith("https://github.com/ChengShiest/LAST-ViT/releases/download/")
    assert record.source.endswith("/" + record.file)
    assert record.caveats
    fields = {field.name for field in dataclasses.fields(record)}
    unknown = {field for field in fields if getattr(record, field) is None}
    assert set(record.inferred) <= fields - unknown
    known = record.pooling if record.pooling["top_k"] is not None else {**record.pooling, "top_k": 1}
    pool = TokenPool(known["pool"], known["top_k"], known["sigma"], known["variant"])
    assert {"pool": pool.kind, "top_k": pool.top_k, "sigma": pool.sigma, "variant": pool.variant} == known
