"""k-NN classification: against a float64 search written out by hand, in blocks, cached, and under torchrun."""

import json
import shutil
import subprocess
from pathlib import Path

import eval_knn
import knn_search
import numpy as np
import pytest
import torch
from frozen_parts import COLOURS, MODEL, REPO, results, run_two, write_colours, write_run
from PIL import Image
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision import transforms

from last_vit.model_argument import parse_model_argument


def clusters(num_queries=60, num_bank=301, num_classes=7, dim=16, spread=0.35, seed=0):
    """Unit vectors around a centre per class, as (queries, their labels, bank, its labels)."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(num_classes, dim, generator=generator)

    def draw(number):
        labels = torch.randint(num_classes, (number,), generator=generator)
        vectors = centres[labels] + spread * dim**0.5 * torch.randn(number, dim, generator=generator)
        return F.normalize(vectors, dim=1), labels

    return *draw(num_queries), *draw(num_bank)


def by_hand(queries, query_labels, bank, bank_labels, num_classes, k, temperature):
    """Top-1 and top-5 in percent in float64, query by query."""
    hits = np.zeros(2)
    for query, label in zip(queries.double().numpy(), query_labels.tolist(), strict=True):
        similarity = bank.double().numpy() @ query
        nearest = np.argsort(-similarity)[:k]
        votes = {}
        for i in nearest:
            votes[int(bank_labels[i])] = votes.get(int(bank_labels[i]), 0.0) + np.exp(similarity[i] / temperature)
        ranked = sorted(votes, key=votes.get, reverse=True)
        hits += (ranked[0] == label, label in ranked[:5])
    return 100 * hits / len(queries)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_against_a_search_by_hand(temperature):
    data = clusters()
    ks = (1, 5, 20, 301)
    found = knn_search.knn_accuracy(*data, 7, ks, temperature)
    assert list(found) == [name for k in ks for name in (f"knn_{k}", f"knn_{k}_top5")]
    for k in ks:
        expected = by_hand(*data, 7, k, temperature)
        assert [found[f"knn_{k}"], found[f"knn_{k}_top5"]] == pytest.approx(expected)
    assert 100 / 7 < found["knn_20"] < 100  # else the comparison would show nothing


def test_blocks_change_nothing(monkeypatch):
    queries, query_labels, bank, bank_labels = clusters(num_bank=1000)
    plain = queries @ bank.T
    best, index = plain.topk(30, dim=1)
    for queries_at_once, elements in ((60, 60 * 1000), (60, 60 * 7), (7, 7 * 33), (1, 1)):
        monkeypatch.setattr(knn_search, "_QUERIES", queries_at_once)
        mib = elements / 2**18
        if queries_at_once == 60:
            found = knn_search.find_nearest(queries, bank, bank_labels, 30, mib_of(monkeypatch, mib))
            torch.testing.assert_close(found.similarity, best, atol=1e-6, rtol=0)
            assert torch.equal(found.labels, bank_labels[index])
        accuracy = knn_search.knn_accuracy(
            queries, query_labels, bank, bank_labels, 7, (10, 30), 0.07, mib_of(monkeypatch, mib)
        )
        assert accuracy == pytest.approx(knn_search.knn_accuracy(queries, query_labels, bank, bank_labels, 7, (10, 30), 0.07))
